"""The pieces of a sweep through Ray Tune; the only file of the downstream tasks that knows Tune.

    schedule ─▶ Searcher.suggest ─▶ a Tune trial in a reused actor ─▶ on_trial_complete ─▶ schedule

A piece is a Tune trial. The actor that ran one takes the next, so torch is imported once an actor
rather than once a trial. Tune's own searchers, schedulers, loggers and snapshots are left out: what
competes with what is a matter of each study, and what is finished lies in the sweep's journal.
"""

import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import ray
from ray import tune
from ray.tune.search import Searcher

from mstar.config import to_dict
from mstar.data.task_data import TaskData
from mstar.downstream.piece_worker import PieceWorker, WorkerSettings
from mstar.downstream.pieces import Answer, Concluded, FitRecord, Piece
from mstar.downstream.schedule import Schedule
from mstar.downstream.tune_stop import SignalStop
from mstar.errors import ConfigError, InterruptedRunError
from mstar.training.cluster import ClusterShape

log = logging.getLogger("mstar.sweep")

_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a folder of files per trial that nobody reads
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # the journal is what a rerun goes by
    "TUNE_WARN_THRESHOLD_S": "60",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the job, as everywhere else
    "RAY_AIR_NEW_OUTPUT": "0",
}
_LOGGERS = ("ray.tune", "ray.train", "ray.air")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """How many pieces run at once, and what each reserves."""

    count: int
    cpus: float
    gpus: float = 0.0

    def at_most(self, count: int) -> "Slots":
        """Fewer, if there are more."""
        return replace(self, count=min(count, self.count))


def make_slots(cluster: ClusterShape, max_trials_per_gpu: int, device: str) -> Slots:
    """Share a cluster's GPUs, or its cores where there are none (or none are wanted).

    Raises:
        ConfigError: a GPU is asked for and there is none, or there is no CPU.
    """
    if device == "cuda" and not cluster.num_gpus:
        raise ConfigError("--device cuda: the cluster has no GPU. Use --device auto or cpu.")
    if not cluster.num_cpus:
        raise ConfigError("the cluster has no CPUs for trials. Add a worker node.")
    if cluster.num_gpus and device != "cpu":
        count = max(1, int(cluster.num_gpus * max_trials_per_gpu))
        cpus = min(1.0, cluster.num_cpus / count)
        return Slots(count=count, cpus=cpus, gpus=1.0 / max_trials_per_gpu)
    return Slots(count=max(1, int(cluster.num_cpus)), cpus=1.0)


def run_pieces(
    schedule: Schedule,
    tasks: Mapping[str, TaskData],
    settings: WorkerSettings,
    slots: Slots,
    *,
    on_answer: Callable[[], None] | None = None,
) -> None:
    """Work until the schedule is finished.

    Args:
        schedule: what is to be done.
        tasks: by the pieces' data key; each is put into the object store once.
        settings: of the workers.
        slots: how many of them.
        on_answer: called after each piece.

    Raises:
        InterruptedRunError: Ctrl-C or SIGTERM; what is finished is in the journal.
        MstarError: of the schedule, such as a journal that cannot be written.
    """
    if schedule.finished:
        return
    references = {key: ray.put(data) for key, data in tasks.items()}
    trainable = tune.with_parameters(_Trial, settings=settings, tasks=references)
    resources = {"cpu": slots.cpus, "gpu": slots.gpus}
    stop = SignalStop()
    with (
        _quiet(slots.count),
        stop.on_signals(),
        tempfile.TemporaryDirectory(prefix="mstar-tune-") as scratch,
    ):
        tuner = tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=_Pieces(schedule, on_answer or (lambda: None), stop),
                num_samples=-1,
                metric="number",
                mode="max",
                reuse_actors=True,
                max_concurrent_trials=slots.count,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=scratch,
                verbose=0,
                callbacks=[_Deaths()],
                stop=stop,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        tuner.fit()
    if stop.error:
        raise stop.error
    if stop.reason:
        raise InterruptedRunError(f"{stop.reason}; run it again to go on")
    assert schedule.finished, "Tune ended before the schedule did"


class _Trial(tune.Trainable):  # type: ignore[misc]
    """A Tune trial: one piece, one step."""

    def setup(
        self,
        config: Mapping[str, Any],
        settings: WorkerSettings | None = None,
        tasks: Mapping[str, Any] | None = None,
    ) -> None:
        """Import what is slow to import, once an actor."""
        import torch

        assert settings is not None
        assert tasks is not None
        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS") or 1)))
        references = tasks
        self._worker = PieceWorker(settings, lambda key: cast(TaskData, ray.get(references[key])))
        self._piece = config["piece"].piece

    def step(self) -> dict[str, Any]:
        """Do the piece; the answer travels as JSON, which no logger takes apart."""
        answer = self._worker.work(self._piece)
        return {"number": 0, "answer": _packed(answer), tune.result.DONE: True}

    def reset_config(self, new_config: Mapping[str, Any]) -> bool:
        """Take the next piece."""
        self._piece = new_config["piece"].piece
        return True


class _Sealed:
    """A piece as Tune sees it: a value with a short name, which it does not look into."""

    def __init__(self, piece: Piece) -> None:
        self.piece = piece

    def __repr__(self) -> str:
        """Tune names trials by it."""
        return self.piece.name


class _Deaths(tune.Callback):  # type: ignore[misc]
    """Says what became of an actor that died; what to do about it is the schedule's business."""

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Log the end of Ray's account."""
        told = str(trial.get_error()).strip().splitlines()[-8:]
        log.warning("%r: its worker died:\n%s", trial.config.get("piece"), "\n".join(told))


class _Pieces(Searcher):  # type: ignore[misc]
    """Tells Tune which piece is next and the schedule what came of it."""

    def __init__(self, schedule: Schedule, on_answer: Callable[[], None], stop: SignalStop) -> None:
        super().__init__(metric="number", mode="max")
        self._schedule, self._on_answer, self._stop = schedule, on_answer, stop
        self._running: dict[str, Piece] = {}

    def suggest(self, trial_id: str) -> Any:
        """The next piece, None when it has to wait, FINISHED when there is none left."""
        if self._schedule.finished or self._stop.stop_all():
            return Searcher.FINISHED
        piece = self._schedule.next()
        if piece is None:
            return None
        self._running[trial_id] = piece
        return {"piece": _Sealed(piece)}

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Hand the answer on; no answer means that the actor died."""
        piece = self._running.pop(trial_id, None)
        answer = None if error or result is None else result.get("answer")
        if piece is None or self._stop.error or (self._stop.reason and answer is None):
            return  # what is cut off by the end of the job is done again by the next run
        try:
            self._take(piece, answer)
        except Exception as raised:  # Tune would call it the trial's, and the piece never end
            self._stop.error = raised

    def _take(self, piece: Piece, answer: str | None) -> None:
        if answer is None:
            self._schedule.lose(piece, "the worker died (out of memory, or its node is gone)")
        else:
            self._schedule.take(piece, _unpacked(answer))
        self._on_answer()

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune saves its searchers; a saved one is never used."""
        return object, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Pieces":
        """There is one schedule."""
        return self

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the journal has it."""


def _packed(answer: Answer) -> str:
    return json.dumps(to_dict(answer))


def _unpacked(text: str) -> Answer:
    found = json.loads(text)
    concluded = found["concluded"]
    return Answer(
        fits=tuple(FitRecord.parse(fit) for fit in found["fits"]),
        concluded=None if concluded is None else Concluded.parse(concluded),
        failed=found["failed"],
        traceback=found["traceback"],
        transient=found["transient"],
    )


@contextmanager
def _quiet(slots: int) -> Iterator[None]:
    """Tune's settings for as long as it runs; the sweep prints its own progress."""
    wanted = {**_QUIET, "TUNE_MAX_PENDING_TRIALS_PG": str(slots)}
    before = {name: os.environ.get(name) for name in wanted}
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    os.environ.update(wanted)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
