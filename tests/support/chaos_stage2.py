"""`mstar stage2` whose ranks write down, by id, what they train.

Run as `python -m support.chaos_stage2 NOTES stage2 laptop …`. Each attempt of the group leaves
files of its own, `NOTES/ids-<when it began>-rank<number>`.
"""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path

import torch.distributed as dist

from mstar.cli.main import main
from mstar.pretrain import stage2, stage2_run
from mstar.pretrain.stage2_config import Stage2Config
from mstar.training.sessions import Session
from support.stage2_runs import ids_of, recorded


def recorded_train(session: Session, config: Stage2Config, *, notes: str) -> None:
    """As `stage2_run.train`, which the driver hands to its workers."""
    began = [time.time_ns()]
    if session.world_size > 1:
        dist.broadcast_object_list(began, 0)
    with recorded(Path(notes), f"{began[0]:020d}-rank{session.rank}"):
        stage2_run.train(session, config)


def trained_patches(notes: Path) -> dict[int, list[str]]:
    """Step → the patches that are in the result: those of the last attempt at the step."""
    by_attempt: dict[str, list[str]] = {}
    for path in notes.glob("ids-*-rank*"):
        name = path.name.removeprefix("ids-")
        by_attempt.setdefault(name.partition("-")[0], []).append(name)
    found: dict[int, list[str]] = {}
    for _, names in sorted(by_attempt.items()):
        found |= ids_of(notes, *sorted(names))
    return found


if __name__ == "__main__":
    from support import chaos_stage2  # by its importable name, for the workers

    train = functools.partial(chaos_stage2.recorded_train, notes=sys.argv[1])
    stage2.train = train
    sys.exit(main(sys.argv[2:]))
