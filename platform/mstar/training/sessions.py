"""Where a training loop runs: alone in this process, or as one rank of a group under Ray Train.

The loop sees only the protocol. A checkpoint is a folder: every rank writes its own files into it,
rank 0 also `train_state.json`, which says where the run stood and which files, of which size, all
ranks wrote. A checkpoint counts only while all of them are there: neither a killed save nor a
folder that somebody deletes from can be taken for a whole one.
"""

import json
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from mstar.errors import CheckpointError
from mstar.storage import objects

STATE_FILE = "train_state.json"
_STALE_S = 3600.0
_NAME = re.compile(r"step-(\d+)-w\d+-\w+")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainState:
    """Where a run stood when a checkpoint was written.

    step: optimiser steps done. world_size: ranks that wrote it. fingerprint: of what must not
    change between attempts. run_id: of the tracked run, to go on with it.
    extra: what a stage keeps besides, as JSON.
    """

    step: int
    world_size: int
    fingerprint: str
    run_id: str = ""
    best: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Session(Protocol):
    """One rank of a training run. Methods marked collective are called by all ranks alike."""

    rank: int
    world_size: int
    device: torch.device

    def latest(self) -> AbstractContextManager[Path | None]:
        """The newest complete checkpoint as a local folder; None on a fresh start. Collective."""

    def save(
        self,
        write: Callable[[Path], None],
        state: TrainState,
        metrics: Mapping[str, float],
        *,
        wait: bool = True,
    ) -> None:
        """Write a checkpoint: `write` puts this rank's files into a folder. Collective.

        wait: return when it is where it will stay; otherwise training may go on meanwhile.
        """

    def preempted(self) -> bool:
        """Whether this node is about to be taken away. Collective."""


class LocalSession:
    """This process alone; checkpoints go to a folder, local or s3://, of one run at a time."""

    rank = 0
    world_size = 1

    def __init__(self, root: str, *, device: torch.device, keep: int = 2) -> None:
        """Keep the last `keep` checkpoints below `root`."""
        assert keep > 0, "a run without a checkpoint cannot go on"
        self.device = device
        self._root, self._keep = root, keep

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        """The newest complete checkpoint; fetched when it is in an object store."""
        names = whole_checkpoints(self._root)
        if not names:
            yield None
            return
        uri = objects.join(self._root, names[-1])
        if objects.is_local(uri):
            yield objects.local_path(uri)
            return
        with tempfile.TemporaryDirectory() as folder:
            yield _fetch(uri, Path(folder))

    def save(
        self,
        write: Callable[[Path], None],
        state: TrainState,
        metrics: Mapping[str, float],
        *,
        wait: bool = True,
    ) -> None:
        """Write the folder whole: the state file, without which it does not count, comes last."""
        name = checkpoint_name(state, uuid.uuid4().hex)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write(folder)
            sizes = sizes_of(folder)
            for rel in sizes:
                objects.put_file(folder / rel, objects.join(self._root, name, rel))
        data = dump_state(state, sizes)
        objects.write_whole(objects.join(self._root, name, STATE_FILE), data)
        self._prune(name)

    def preempted(self) -> bool:
        """A laptop gives no notice."""
        return False

    def _prune(self, mine: str) -> None:
        """Drop old checkpoints, and what killed runs left incomplete.

        Raises:
            CheckpointError: the one just written is gone: another run works in the same folder.
        """
        whole = whole_checkpoints(self._root)
        if mine not in whole:
            raise CheckpointError(
                f"{objects.join(self._root, mine)}: expected the checkpoint just written, got one "
                "with files missing: another run works in this folder. Give each run its own --out."
            )
        keep = {mine, *whole[-self._keep :]}
        for name in found_checkpoints(self._root).keys() - keep:
            delete_checkpoint(self._root, name)
        objects.collect_stale_temps(self._root, _STALE_S)


def checkpoint_name(state: TrainState, attempt: str) -> str:
    """A folder name that no other attempt and no other number of ranks uses."""
    return f"step-{state.step:08d}-w{state.world_size}-{attempt[:8]}"


def found_checkpoints(root: str) -> dict[str, dict[str, int]]:
    """Folders below `root` that are named as checkpoints, by step: their files and sizes."""
    found: dict[str, dict[str, int]] = {}
    for info in objects.list_files(root):
        name, _, rel = info.rel.partition("/")
        if rel and _NAME.fullmatch(name):
            found.setdefault(name, {})[rel] = info.size_bytes
    return {name: found[name] for name in sorted(found, key=_by_step)}


def whole_checkpoints(root: str) -> list[str]:
    """Names of the complete checkpoints below `root`, the newest last."""
    return [name for name, sizes in found_checkpoints(root).items() if _is_whole(root, name, sizes)]


def _is_whole(root: str, name: str, sizes: Mapping[str, int]) -> bool:
    try:
        stated = json.loads(objects.read_bytes(objects.join(root, name, STATE_FILE)))
        return all(sizes.get(rel) == size for rel, size in stated["files"].items())
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return False


def delete_checkpoint(root: str, name: str) -> None:
    """Delete a checkpoint, its state file first: from then on it does not count."""
    objects.delete(objects.join(root, name, STATE_FILE))
    objects.delete_tree(objects.join(root, name))


def _by_step(name: str) -> tuple[int, str]:
    match = _NAME.fullmatch(name)
    assert match is not None, name
    return int(match[1]), name


def sizes_of(folder: Path) -> dict[str, int]:
    """Files below a local folder and their sizes."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def dump_state(state: TrainState, sizes: Mapping[str, int]) -> bytes:
    """`train_state.json`: the state, and the files of all ranks with their sizes."""
    return json.dumps(asdict(state) | {"files": dict(sizes)}, indent=1, sort_keys=True).encode()


def read_state(folder: Path) -> TrainState:
    """The state of a checkpoint folder.

    Raises:
        CheckpointError: it has none, or one of another version.
    """
    try:
        fields = json.loads((folder / STATE_FILE).read_text())
        return TrainState(**{name: value for name, value in fields.items() if name != "files"})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / STATE_FILE}: expected the state of a training run, got {error}. "
            "Name another checkpoint, or start afresh in another --out."
        ) from error


def _fetch(uri: str, folder: Path) -> Path:
    for info in objects.list_files(uri):
        target = folder / info.rel
        target.parent.mkdir(parents=True, exist_ok=True)
        with objects.open_read(info.uri) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 24)
    return folder
