"""One rank of a worker group under Ray Train, and its checkpoints."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch.distributed as dist
from ray.train import (
    Checkpoint,
    CheckpointConsistencyMode,
    CheckpointUploadMode,
)

from mstar.storage import objects
from mstar.storage.arrow import arrow_filesystem
from mstar.training.sessions import (
    STATE_FILE,
    TrainState,
    checkpoint_name,
    delete_checkpoint,
    dump_state,
    found_checkpoints,
    sizes_of,
    whole_checkpoints,
)


class RaySession:
    """One rank under Ray Train."""

    def __init__(self, folder: str, *, upload: str = "sync") -> None:
        """Call in a worker of the group; `folder` is where Ray keeps the run's checkpoints."""
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.leaving = False
        self._folder, self._upload = folder, upload

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        """The newest checkpoint that all ranks had written.

        Ray's own record lags behind: a worker that dies soon after a save takes that one with it.
        """
        chosen = [self._choose() if self.rank == 0 else None]
        dist.broadcast_object_list(chosen, 0)
        if chosen[0] is None:
            yield None
            return
        with _checkpoint_at(objects.join(self._folder, chosen[0])).as_directory() as folder:
            yield Path(folder)

    def save(
        self,
        write: Callable[[Path], None],
        state: TrainState,
        metrics: Mapping[str, float],
        *,
        wait: bool = True,
    ) -> None:
        """Every rank's files, merged by Ray under a name that no other attempt has.

        The folder outlives the call while it is copied; Ray deletes it afterwards.
        """
        wait = wait or self._upload == "sync"
        folder = Path(tempfile.mkdtemp(prefix="mstar-checkpoint-"))
        try:
            write(folder)
            sizes, attempt = self._of_all_ranks(sizes_of(folder))
            if self.rank == 0:
                (folder / STATE_FILE).write_bytes(dump_state(state, sizes))
            ray.train.report(
                dict(metrics),
                checkpoint=Checkpoint.from_directory(folder),
                checkpoint_dir_name=checkpoint_name(state, attempt),
                checkpoint_upload_mode=(
                    CheckpointUploadMode.SYNC if wait else CheckpointUploadMode.ASYNC
                ),
                delete_local_checkpoint_after_upload=True,
            )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def preempted(self) -> bool:
        """Whether a node of the group is about to be taken away."""
        self.leaving = ray.train.get_preemption_info() is not None
        return self.leaving

    def _of_all_ranks(self, sizes: dict[str, int]) -> tuple[dict[str, int], str]:
        """The files of all ranks, and a name for this attempt."""
        mine = (sizes, ray.get_runtime_context().get_actor_id())
        every: list[Any] = [None] * self.world_size
        dist.all_gather_object(every, mine)
        merged = {rel: size for sizes, _ in every for rel, size in sizes.items()}
        assert len(merged) == sum(len(sizes) for sizes, _ in every), "two ranks write one file"
        return merged, str(every[0][1])

    def _choose(self) -> str | None:
        """The newest whole checkpoint; what Ray does not know of besides is deleted."""
        newest = next(reversed(whole_checkpoints(self._folder)), None)
        reported = ray.train.get_all_reported_checkpoints(
            consistency_mode=CheckpointConsistencyMode.COMMITTED
        )
        known = {Path(one.checkpoint.path).name for one in reported} | {newest}
        for name in found_checkpoints(self._folder).keys() - known:
            delete_checkpoint(self._folder, name)
        return newest


def _checkpoint_at(uri: str) -> Checkpoint:
    if objects.is_local(uri):
        return Checkpoint.from_directory(objects.local_path(uri))
    return Checkpoint(uri.removeprefix("s3://"), filesystem=arrow_filesystem())
