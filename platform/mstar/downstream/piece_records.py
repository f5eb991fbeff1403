"""What a worker says of its work: records of fits, scores of a winner, facts of the data."""

import math
from collections.abc import Mapping

import numpy as np

from mstar.data.task_data import TaskData
from mstar.downstream.bags import PackedBags
from mstar.downstream.config import SELECTION_METRICS, Study
from mstar.downstream.model_files import SUFFIX
from mstar.downstream.pieces import FitRecord, Piece
from mstar.downstream.prediction_parts import evaluated_parts
from mstar.downstream.predictions import read_predictions
from mstar.downstream.statistics.metrics import value_of
from mstar.downstream.study_files import digests, study_folder
from mstar.downstream.trainer import FitResult
from mstar.errors import MstarError
from mstar.storage import objects


def fit_uri(out: str, study: Study, key: str) -> str:
    """Where a trained head waits until its study is concluded."""
    return objects.join(study_folder(out, study), "fits", key + SUFFIX)


def told(error: BaseException) -> str:
    """An error in one line or a few: the platform's own speak for themselves."""
    return str(error) if isinstance(error, MstarError) else f"{type(error).__name__}: {error}"


def mean_scores(predictions: Mapping[str, str]) -> dict[str, float]:
    """`<part>_<metric>`, a mean over folds and seeds, where it is defined."""
    found = {}
    for part, uri in predictions.items():
        read = read_predictions(uri)
        metric = SELECTION_METRICS.get(read.facts.kind, read.facts.metric)
        value = float(np.mean([value_of(metric, one) for one in evaluated_parts(read)]))
        if math.isfinite(value):
            found[f"{part}_{metric}"] = value
    return found


def fit_record(piece: Piece, at: int, number: int, fit: FitResult) -> FitRecord:
    """What is remembered of a fit: the configuration's and the run's position in the piece."""
    fold, seed = piece.runs[number]
    return FitRecord(
        key=piece.keys[at][number],
        trial=piece.trials[at],
        fold=fold,
        seed=seed,
        score=None if fit.failed else float(fit.best_score),
        best_epoch=fit.best_epoch,
        history=tuple(
            (_finite(row.train_loss), _finite(row.val_loss), _finite(row.val_score))
            for row in fit.history
        ),
        seconds=fit.seconds,
        stopped=fit.stopped,
        failed=fit.failed,
    )


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None


def raised_record(piece: Piece, at: int, number: int, error: Exception) -> FitRecord:
    """What is remembered of a fit that an error ended."""
    fold, seed = piece.runs[number]
    return FitRecord(
        key=piece.keys[at][number],
        trial=piece.trials[at],
        fold=fold,
        seed=seed,
        score=None,
        failed=told(error),
        raised=True,
    )


def data_facts(data: TaskData, bags: PackedBags) -> dict[str, object]:
    """What the tags of a study say of its data."""
    return {
        **{f"digest.{name}": value for name, value in digests(data, bags).items()},
        "data_source": data.data_source,
        "samples": len(data.samples),
        "patches": int(bags.offsets[-1]),
        "leaked_patients": data.leaked_patients,
        "split_source": data.split_source,
        "label_source": data.label_source,
    }
