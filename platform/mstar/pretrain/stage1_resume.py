"""Where a stage-1 run goes on from: its newest checkpoint, if nothing it depends on has changed."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mstar.config import differences, to_dict
from mstar.errors import CheckpointError
from mstar.pretrain.stage1_config import Stage1Config
from mstar.storage import objects
from mstar.training.engines import EngineConfig
from mstar.training.sessions import LocalSession, Session, TrainState, read_state

log = logging.getLogger("mstar.stage1")


def run_name(config: Stage1Config) -> str:
    """The run's name under Ray, the same for all its attempts."""
    return f"stage1-{config.fingerprint}"


def checkpoint_root(config: Stage1Config, *, alone: bool) -> str:
    """Checkpoints of attempts without Ray (`alone`), or of those with it."""
    return objects.join(config.out, "checkpoints", "alone" if alone else run_name(config))


@contextmanager
def newest_checkpoint(session: Session, config: Stage1Config) -> Iterator[Path | None]:
    """The newest checkpoint of this run, of an attempt with Ray or without; None at the start."""
    other = LocalSession(
        checkpoint_root(config, alone=not isinstance(session, LocalSession)), device=session.device
    )
    with session.latest() as own, other.latest() as others:
        folders = [folder for folder in (own, others) if folder is not None]
        yield max(folders, key=lambda folder: read_state(folder).step, default=None)


def start_state(
    folder: Path | None, config: Stage1Config, session: Session, inputs: Mapping[str, str]
) -> TrainState:
    """Where to go on from.

    Args:
        folder: the checkpoint, None at the start.
        config: of this attempt.
        session: of this rank.
        inputs: digests of what this attempt reads.

    Raises:
        CheckpointError: the checkpoint is of a run with other settings, or of other inputs.
    """
    now = {"inputs": dict(inputs), "engine": to_dict(config.engine)}
    if folder is None:
        fingerprint, workers = config.fingerprint, session.world_size
        return TrainState(step=0, world_size=workers, fingerprint=fingerprint, extra=now)
    found = read_state(folder)
    if found.fingerprint != config.fingerprint:
        raise CheckpointError(
            f"{config.out}: its checkpoint is of a run with other settings (fingerprint "
            f"{found.fingerprint}, this run has {config.fingerprint}). Give another --out."
        )
    _refuse_other_inputs(config, found.extra["inputs"], now["inputs"])
    if session.rank == 0:
        _say_what_changed(found, config, session)
    return replace(found, world_size=session.world_size, extra={**found.extra, **now})


def _refuse_other_inputs(
    config: Stage1Config, before: Mapping[str, str], now: Mapping[str, str]
) -> None:
    if before == now:
        return
    lines = "; ".join(differences(dict(before), dict(now))).replace("found", "got")
    raise CheckpointError(
        f"{config.out}: what it reads has changed since its checkpoint (sha256 or fingerprint): "
        f"{lines}. Put the former {', '.join(k for k in now if now[k] != before.get(k))} back, or "
        "give another --out."
    )


def _say_what_changed(found: TrainState, config: Stage1Config, session: Session) -> None:
    log.warning("resumed at step %d", found.step)
    if found.world_size != session.world_size:
        log.warning(
            "workers changed from %d to %d: batches, bags and windows stay the same; dropout "
            "draws and the order of sums differ",
            found.world_size,
            session.world_size,
        )
    engine = EngineConfig(**found.extra["engine"])
    for line in differences(engine, config.engine):
        log.warning("engine changed: %s", line.replace("expected", "was").replace("found", "is"))
