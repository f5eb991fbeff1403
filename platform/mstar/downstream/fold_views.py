"""What training may see of a fold: its training part, and the part that selects. Never the test.

Labels of other samples are not in a view, so a trainer that is handed one cannot look at them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from mstar.data.task_data import TaskData
from mstar.downstream.config import CLASSIFICATION, KINDS, SURVIVAL, Protocol
from mstar.downstream.statistics.evaluated import Evaluated
from mstar.errors import TrainingError

NO_LABEL = -1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """Some samples of a task with their labels.

    name: train, val, test, or the parts it was joined from.
    places: positions in the task's samples, and so in its bags.
    labels: class codes; NO_LABEL in survival tasks.
    times, events: NaN and False in classification tasks.
    """

    name: str
    places: Int64[np.ndarray, " sample"]
    patients: tuple[str, ...]
    labels: Int64[np.ndarray, " sample"]
    times: Float64[np.ndarray, " sample"]
    events: Bool[np.ndarray, " sample"]

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.places)

    def evaluated(
        self,
        scores: np.ndarray,
        training: str,
        *,
        follow_up: float = np.inf,
        fold: str = "",
        seed: int = 0,
    ) -> Evaluated:
        """The part with what a model said about it."""
        survival = training == SURVIVAL
        return Evaluated(
            patients=self.patients,
            scores=scores,
            labels=self.labels if training == CLASSIFICATION else None,
            times=self.times if survival else None,
            events=self.events if survival else None,
            follow_up=follow_up,
            fold=fold,
            seed=seed,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoldView:
    """One fold as training sees it.

    training: classification or survival; of other kinds of task the kind.
    num_classes: of the task, whatever the part holds; 0 in survival tasks.
    select: the samples that choose epoch and configuration.
    bin_times, bin_events: what the protocol cuts survival bins from.
    """

    task_id: str
    fold: str
    training: str
    num_classes: int
    train: Part
    select: Part
    bin_times: Float64[np.ndarray, " sample"]
    bin_events: Bool[np.ndarray, " sample"]

    @property
    def follow_up(self) -> float:
        """The longest time of the training part, months; infinite in classification tasks."""
        return float(self.train.times.max()) if self.training == SURVIVAL else float("inf")


def view_fold(data: TaskData, fold: int, protocol: Protocol) -> FoldView:
    """A fold as the protocol lets training see it."""
    training, cut = KINDS.get(data.task.kind, data.task.kind), data.folds[fold]
    if not len(cut.train) or not len(cut.val):
        raise TrainingError(
            f"task {data.task.task_id}, fold {cut.name}: expected samples to train and to validate "
            f"on, got {len(cut.train)} and {len(cut.val)}. Check the split of its label table."
        )
    train = part_of(data, "train", cut.train)
    places = np.concatenate([getattr(cut, name) for name in protocol.selection])
    bins = train
    if protocol.bins_from == "all":
        bins = part_of(data, "all", np.concatenate([cut.train, cut.val, cut.test]))
    return FoldView(
        task_id=data.task.task_id,
        fold=cut.name,
        training=training,
        num_classes=len(data.class_names) if training == CLASSIFICATION else 0,
        train=train,
        select=part_of(data, "+".join(protocol.selection), places),
        bin_times=bins.times,
        bin_events=bins.events,
    )


def part_of(data: TaskData, name: str, places: Int64[np.ndarray, " sample"]) -> Part:
    """The samples at some positions, with their labels."""
    samples = [data.samples[place] for place in places.tolist()]
    return Part(
        name=name,
        places=places.astype(np.int64),
        patients=tuple(data.patients[place] for place in places.tolist()),
        labels=_column([s.label for s in samples], NO_LABEL, np.int64),
        times=_column([s.time_months for s in samples], np.nan, np.float64),
        events=_column([s.event for s in samples], False, np.bool_),
    )


def _column(values: Sequence[object], empty: object, dtype: type) -> np.ndarray:
    return np.asarray([empty if value is None else value for value in values], dtype)
