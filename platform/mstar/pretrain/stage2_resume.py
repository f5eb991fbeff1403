"""Whose output it is, and where a stage-2 run goes on from.

`run.json` has the settings, the shards' fingerprint and the hash of the first weights; it is
written before the first step, and another run is refused by it. `stage2.json` ends a run.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mstar
from mstar.config import differences, fingerprint, to_dict
from mstar.data.shards.format import ShardIndex, read_index, shards_folder
from mstar.errors import CheckpointError, ConfigError
from mstar.models.student import initial_weights
from mstar.models.weights import ResolvedWeights
from mstar.pretrain.stage1_facts import RUN_FILE, read_json, write_json
from mstar.pretrain.stage2_config import Stage2Config
from mstar.pretrain.stage2_init import Start, read_start
from mstar.storage import objects
from mstar.training.engines import EngineConfig
from mstar.training.sessions import LocalSession, Session, TrainState, read_state

log = logging.getLogger("mstar.stage2")

COUNTS_FILE = "stage2_counts.json"  # beside the engine's files in a checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a run reads: the shards' index, and the weights that the student starts from.

    start: the finished run whose encoder it goes on with, None for none.
    """

    index: ShardIndex
    weights: ResolvedWeights
    start: Start | None = None


def open_inputs(config: Stage2Config) -> Inputs:
    """Open shards and weights; nothing is built.

    Raises:
        MstarError: they are not there, or do not belong together.
    """
    index = read_index(shards_folder(config.shards))
    weights = initial_weights(
        index.encoder.name,
        config.weights,
        expected_sha256=index.encoder.weights_sha256,
        expected_transform=index.encoder.transform,
        allow_other=config.allow_other_weights,
    )
    start = read_start(config.init_from, config.out, index.encoder.name)
    return Inputs(index=index, weights=weights, start=start)


def run_identity(config: Stage2Config, inputs: Inputs) -> dict[str, Any]:
    """What attempts that share checkpoints have in common."""
    identity: dict[str, Any] = to_dict(
        {
            **config.identity,
            "shards_fingerprint": inputs.index.fingerprint,
            "shards_rows": inputs.index.num_rows,
            "initial_sha256": inputs.weights.sha256,
            **({"init_from": inputs.start.sha256} if inputs.start is not None else {}),
        }
    )
    return identity


def refuse_other_run(out: str, identity: Mapping[str, Any]) -> None:
    """Raises ConfigError when the output is that of a run with other settings, and names them."""
    found = read_json(out, RUN_FILE)
    if found is None or found["identity"] == identity:
        return
    lines = "\n  ".join(
        line.replace(": expected ", ": there ").replace(", found ", ", here ")
        for line in differences(found["identity"], dict(identity))
    )
    raise ConfigError(
        f"{out}: holds a stage 2 with other settings or inputs:\n  {lines}\n"
        "Give another --out, or repeat its settings."
    )


def claim(config: Stage2Config, identity: Mapping[str, Any]) -> None:
    """Write down whose output this is."""
    if read_json(config.out, RUN_FILE) is None:
        content = {"identity": dict(identity), "config": to_dict(config)}
        write_json(config.out, RUN_FILE, {**content, "mstar": mstar.__version__})


def run_name(identity: Mapping[str, Any]) -> str:
    """The run's name under Ray, the same for all its attempts."""
    return f"stage2-{fingerprint(dict(identity))}"


def checkpoint_root(out: str, identity: Mapping[str, Any], *, alone: bool) -> str:
    """Checkpoints of attempts without Ray (`alone`), or of those with it."""
    return objects.join(out, "checkpoints", "alone" if alone else run_name(identity))


@contextmanager
def newest_checkpoint(
    session: Session, out: str, identity: Mapping[str, Any]
) -> Iterator[Path | None]:
    """The newest checkpoint of this run, of an attempt with Ray or without; None at the start."""
    alone = isinstance(session, LocalSession)
    root = checkpoint_root(out, identity, alone=not alone)
    other = LocalSession(root, device=session.device)
    with session.latest() as own, other.latest() as others:
        folders = [folder for folder in (own, others) if folder is not None]
        yield max(folders, key=lambda folder: read_state(folder).step, default=None)


def start_state(
    folder: Path | None, config: Stage2Config, identity: Mapping[str, Any], session: Session
) -> TrainState:
    """Where to go on from.

    Raises:
        CheckpointError: the checkpoint is of a run with other settings, shards or weights.
    """
    name = fingerprint(dict(identity))
    now = {"identity": dict(identity), "engine": to_dict(config.engine)}
    if folder is None:
        return TrainState(step=0, world_size=session.world_size, fingerprint=name, extra=now)
    found = read_state(folder)
    if found.fingerprint != name:
        lines = "; ".join(differences(found.extra["identity"], dict(identity)))
        raise CheckpointError(
            f"{config.out}: its checkpoint is of another run ({lines.replace('found', 'now')}). "
            "Give another --out."
        )
    if session.rank == 0:
        _say_what_changed(found, config, session)
    return replace(found, world_size=session.world_size, extra={**found.extra, **now})


def write_counts(folder: Path, *, bad_rows: int) -> None:
    """What rank 0 has counted so far, into a checkpoint."""
    (folder / COUNTS_FILE).write_text(json.dumps({"bad_rows": bad_rows}))


def read_counts(folder: Path | None) -> int:
    """Rows left out before a checkpoint."""
    if folder is None:
        return 0
    return int(json.loads((folder / COUNTS_FILE).read_text())["bad_rows"])


def _say_what_changed(found: TrainState, config: Stage2Config, session: Session) -> None:
    log.warning("resumed at step %d", found.step)
    if found.world_size != session.world_size:
        log.warning(
            "workers changed from %d to %d: every step trains the same patches; draws of "
            "drop_path and the order of sums differ",
            found.world_size,
            session.world_size,
        )
    engine = EngineConfig(**found.extra["engine"])
    for line in differences(engine, config.engine):
        log.warning("engine changed: %s", line.replace("expected", "was").replace("found", "is"))
