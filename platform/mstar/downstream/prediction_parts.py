"""From a prediction file to what the statistics take: one evaluated set per fold and seed."""

import hashlib

import numpy as np

from mstar.downstream.config import CLASSIFICATION, SURVIVAL
from mstar.downstream.predictions import Predictions
from mstar.downstream.statistics.evaluated import Evaluated


def evaluated_parts(predictions: Predictions) -> list[Evaluated]:
    """One evaluated set for each model (fold and seed), in the order of the file.

    Raises:
        TrainingError: scores are not finite.
    """
    facts = predictions.facts
    survival, classes = facts.kind == SURVIVAL, facts.kind == CLASSIFICATION
    return [
        Evaluated(
            patients=tuple(predictions.patient[row] for row in rows.tolist()),
            scores=predictions.scores[rows].astype(np.float64),
            labels=predictions.label[rows].astype(np.int64) if classes else None,
            times=predictions.time_months[rows] if survival else None,
            events=predictions.event[rows] if survival else None,
            follow_up=float(facts.follow_up.get(fold, np.inf)),
            fold=fold,
            seed=seed,
        )
        for fold, seed, rows in predictions.runs()
    ]


def cases_digest(predictions: Predictions) -> str:
    """Equal for models that were evaluated on the same cases of the same folds."""
    names = sorted(set(zip(predictions.fold, predictions.case_id, strict=True)))
    text = "\n".join(f"{fold}\t{case}" for fold, case in names)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
