"""Ray Train: a training function on every rank of a worker group (a rank's side: `ray_session.py`).

The group restarts from the last checkpoint when a worker or node is lost (`FailureConfig`), as
often as the caller allows. A node that is announced to be taken away does not count: the ranks
write a checkpoint and return, and the run goes on at once on the nodes that stay. An error that
would come again (a NaN, a wrong checkpoint) ends the run without a restart. A run is named by its
configuration's fingerprint: the same command goes on where it stopped, another one starts afresh.
"""

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import (
    CheckpointConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    UserCallback,
)

from mstar.errors import InterruptedRunError, MstarError, WorkerError
from mstar.storage import objects
from mstar.storage.arrow import arrow_filesystem, store_environment
from mstar.training.code_version import refuse_other_code
from mstar.training.group_config import GroupConfig
from mstar.training.ray_session import RaySession
from mstar.training.sessions import (
    Session,
    delete_checkpoint,
    found_checkpoints,
    whole_checkpoints,
)

log = logging.getLogger("mstar.train")

_LEAVING = "a node is taken away"  # what the ranks return after an announced preemption


def train_on_ray(
    train: Callable[[Session, Any], None],
    config: Any,
    group: GroupConfig,
    *,
    name: str,
    storage: str,
    env: Mapping[str, str] | None = None,
) -> None:
    """Run `train(session, config)` on every rank until it is done on all of them.

    name: of the run; a run of this name that stopped before is gone on with.
    storage: folder for checkpoints, local (then seen by all nodes) or s3://.
    env: environment variables of the workers, besides those of the object store.

    Raises:
        WorkerError: the group failed more often than allowed.
        MstarError: of a rank, as itself.
        InterruptedRunError: Ctrl-C or SIGTERM; the last checkpoint stays valid.
    """
    if objects.is_local(storage):
        storage = str(objects.local_path(storage).absolute())  # workers are in other folders
    settings: dict[str, Any] = {
        "train": train,
        "config": config,
        "folder": objects.join(storage, name),
        "upload": group.upload,
    }
    while True:
        trainer = ray.train.torch.TorchTrainer(
            _on_rank,
            train_loop_config=settings,
            torch_config=ray.train.torch.TorchConfig(backend="nccl" if group.gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=group.workers,
                use_gpu=group.gpus,
                resources_per_worker={"CPU": group.cpus_per_worker},
            ),
            run_config=RunConfig(
                name=name,
                failure_config=FailureConfig(max_failures=group.max_restarts),
                checkpoint_config=CheckpointConfig(num_to_keep=group.keep_checkpoints),
                callbacks=[_NoHopelessRestart()],
                worker_runtime_env={"env_vars": store_environment() | dict(env or {})},
                **_storage(storage),
            ),
        )
        if _fit(trainer) != _LEAVING:
            _delete_left_over(settings["folder"], group.keep_checkpoints)
            return
        log.warning("a node is taken away: going on from the last checkpoint without it")


def _delete_left_over(folder: str, keep: int) -> None:
    """Delete what a killed attempt left: Ray, started anew, does not know of it."""
    kept = list(whole_checkpoints(folder))[-keep:]
    for name in found_checkpoints(folder).keys() - set(kept):
        delete_checkpoint(folder, name)


def _fit(trainer: ray.train.torch.TorchTrainer) -> object:
    """Run the group to its end; what rank 0 returned."""
    with _stoppable():
        try:
            return trainer.fit().return_value
        except ray.train.TrainingFailedError as error:
            raise _cause(error) from error


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise InterruptedRunError while Ray waits; both handlers are put back.

    A handler that raises anything but KeyboardInterrupt or SystemExit is ignored while Ray waits.
    Ray's own handler of Ctrl-C, which `fit` leaves behind, ends the process with code 0.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen = ["SIGINT"]

    def on_sigterm(signum: int, frame: FrameType | None) -> None:
        seen[0] = signal.Signals(signum).name
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        raise InterruptedRunError(f"stopped by {seen[0]}") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _on_rank(settings: Mapping[str, Any]) -> str:
    refuse_other_code()
    session = RaySession(settings["folder"], upload=settings["upload"])
    try:
        settings["train"](session, settings["config"])
    except InterruptedRunError:
        if not session.leaving:
            raise
        return _LEAVING  # an error would be counted as a failure
    return ""


class _NoHopelessRestart(UserCallback):  # type: ignore[misc]
    """Ends the run on an error that would come again; Ray would restart the group regardless."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray's controller with what the ranks raised."""
        for error in worker_exceptions.values():
            own = _own_error(error)
            if own is not None and not own.transient:
                raise own


def _storage(uri: str) -> dict[str, Any]:
    if objects.is_local(uri):
        return {"storage_path": uri}
    return {
        "storage_path": uri.removeprefix("s3://"),
        "storage_filesystem": arrow_filesystem(),
    }


def _cause(error: Exception) -> MstarError:
    """What the ranks said: our own error when there is one, a failure of the workers else."""
    failures = getattr(error, "worker_failures", None) or {}
    said = [*failures.values(), getattr(error, "controller_failure", None), error]
    own = [found for one in said if (found := _own_error(one)) is not None]
    if own:
        return min(own, key=lambda one: one.transient)  # what others did because of it comes later
    first = next(iter(failures.values()), error)
    return WorkerError(f"the training workers failed: {first}. The same command goes on.")


def _own_error(error: BaseException | None) -> MstarError | None:
    """The first error of ours along the chain of causes."""
    while error is not None:
        if isinstance(error, MstarError):
            return error
        error = getattr(error, "cause", None) or error.__cause__
    return None


def device_of(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` as a device, for a run without Ray."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
