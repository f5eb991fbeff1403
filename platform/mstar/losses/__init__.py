"""Losses as pure functions of embeddings. They know neither models nor the cluster."""
