"""The group of workers that a training run asks Ray for; read without importing Ray."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupConfig:
    """The group of workers that a run asks Ray for."""

    workers: int = 0
    """Ranks; 0 trains in this process, without Ray."""
    cpus_per_worker: float = 1.0
    """CPUs that Ray sets aside for a rank; its reading threads among them."""
    gpus: bool = False
    """One GPU for every rank."""
    max_restarts: int = 3
    """Restarts from the last checkpoint after a lost worker; preempted nodes do not count."""
    keep_checkpoints: int = 2
    """Checkpoints kept; older ones are deleted."""
    upload: Literal["async", "sync"] = "async"
    """`async`: training goes on while a checkpoint is copied to where it stays. The next one waits
    for it, so a crash costs the steps since the checkpoint before the last at most."""
