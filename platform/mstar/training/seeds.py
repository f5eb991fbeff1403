"""Randomness without state: every draw is named by what it is for.

A generator is made from the run's seed and the names of the place that draws (epoch, step, case …),
so that a resumed run, or one on another number of workers, draws the same without any state in the
checkpoint.
"""

import hashlib

import torch


def seed_of(*names: object) -> int:
    """A 63-bit seed from any names; equal names give equal seeds on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, names)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def reseed(*names: object) -> None:
    """Seed torch's global generators, which dropout draws from."""
    torch.manual_seed(seed_of(*names))
