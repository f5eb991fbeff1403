"""Patch encoders and their weights. Importing this package loads neither torch nor timm."""
