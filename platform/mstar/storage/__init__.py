"""Disks and object stores: whole writes, leases, the failure ledger, the slide cache, manifests."""
