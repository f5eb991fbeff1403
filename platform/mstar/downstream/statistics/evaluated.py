"""One evaluated set: what a model said about some cases, and what was true of them.

Every metric takes an `Evaluated` and `weights`, one row a resample and one column a sample: how
often the sample was drawn. `once` are the weights of the set as it is.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Int64

from mstar.errors import TrainingError

BLOCK_NUMBERS = 2_000_000  # of one temporary array: 16 MB as float64, so that memory stays flat


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The predictions of one model on one part, one row a sample.

    patients: whom each sample is from; samples of one patient are never independent.
    scores: a probability per class, or one risk (higher is worse).
        Without labels and times they are measures of each sample, a column each, in the order of
        `mstar.downstream.statistics.measured`.
    labels: class codes, of a classification.
    times: months, and events: whether it was an event or censoring, of a survival task.
    follow_up: longest time of the training part in months; infinite where it is not known.
    fold, seed: of the model.
    """

    patients: tuple[str, ...]
    scores: Float[np.ndarray, "sample out"]
    labels: Int[np.ndarray, " sample"] | None = None
    times: Float[np.ndarray, " sample"] | None = None
    events: Bool[np.ndarray, " sample"] | None = None
    follow_up: float = np.inf
    fold: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        assert self.patients, "nothing was evaluated"
        assert (self.times is None) == (self.events is None)
        assert self.labels is None or self.times is None, "classes or times, not both"
        for column in (self.scores, self.labels, self.times, self.events):
            assert column is None or len(column) == len(self.patients)
        bad = int((~np.isfinite(self.scores)).any(axis=1).sum())
        if bad:
            raise TrainingError(
                f"fold {self.fold!r}, seed {self.seed}: {bad} of {len(self.patients)} predictions "
                "are not finite. A metric of them would mean nothing: the model has diverged; "
                "train it again with a lower learning rate or in float32."
            )

    @property
    def num_patients(self) -> int:
        """How many patients the samples are from."""
        return len(set(self.patients))

    @property
    def num_classes(self) -> int:
        """Classes of the task; 0 for a task without classes."""
        return 0 if self.labels is None else self.scores.shape[1]

    @property
    def class_labels(self) -> Int64[np.ndarray, " sample"]:
        """The class codes of a classification."""
        assert self.labels is not None, "the task has no classes"
        return self.labels.astype(np.int64)

    @property
    def predicted(self) -> Int64[np.ndarray, " sample"]:
        """The most probable class; of equal ones the first."""
        best: Int64[np.ndarray, " sample"] = self.scores.argmax(axis=1).astype(np.int64)
        return best

    @property
    def outcome(self) -> tuple[Float[np.ndarray, " sample"], Bool[np.ndarray, " sample"]]:
        """Times and events of a survival task."""
        assert self.times is not None, "the task has no times"
        assert self.events is not None, "the task has no events"
        return self.times.astype(np.float64), self.events.astype(bool)

    @property
    def risks(self) -> Float[np.ndarray, " sample"]:
        """The risk of a survival task."""
        assert self.scores.shape[1] == 1, "a survival task has one risk"
        return self.scores[:, 0].astype(np.float64)

    @property
    def row_order(self) -> Int64[np.ndarray, " sample"]:
        """An order of the samples that any model of them has: by patient, then by the truth."""
        truth = [self.labels] if self.labels is not None else []
        truth += list(self.outcome) if self.times is not None else []
        order: Int64[np.ndarray, " sample"] = np.lexsort([*truth, np.asarray(self.patients)])
        return order


def once(samples: int) -> Int[np.ndarray, "one sample"]:
    """The weights of the set as it is: one row of ones."""
    return np.ones((1, samples), np.int32)


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Runs of rows such that a block of them times the columns stays small."""
    step = max(1, BLOCK_NUMBERS // max(1, columns))
    return (slice(start, start + step) for start in range(0, rows, step))


def ratio(
    top: Float[np.ndarray, "..."], bottom: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """Quotient, and NaN (never a warning) where there is nothing to divide by."""
    undefined = np.full(np.broadcast_shapes(top.shape, bottom.shape), np.nan)
    np.divide(top, bottom, out=undefined, where=bottom != 0)
    return undefined


def mean_defined(values: Float[np.ndarray, "item ..."]) -> Float[np.ndarray, "..."]:
    """Mean over the first axis of what is not NaN; NaN where nothing is defined."""
    defined = ~np.isnan(values)
    total = np.where(defined, values, 0.0).sum(axis=0)
    return ratio(np.asarray(total), np.asarray(defined.sum(axis=0), dtype=np.float64))
