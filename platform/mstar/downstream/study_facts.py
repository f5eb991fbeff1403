"""What prediction files and models say of the study they come from."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mstar.config import to_dict
from mstar.data.task_data import TaskData
from mstar.downstream.bags import PackedBags
from mstar.downstream.config import SURVIVAL, Protocol, Study, training_kind
from mstar.downstream.evaluate import predict
from mstar.downstream.fold_views import FoldView, view_fold
from mstar.downstream.predictions import PredictionFacts
from mstar.downstream.stream import BagSource
from mstar.downstream.study_files import digests
from mstar.downstream.trainer import FitResult
from mstar.losses.survival import bin_edges


def study_facts(
    data: TaskData,
    bags: PackedBags,
    protocol: Protocol,
    fits: Sequence[FitResult],
    runs: Sequence[tuple[int, int]],
    source: BagSource,
    trials: int,
) -> PredictionFacts:
    """What the prediction files say of the winner's fits.

    Args:
        data: the task.
        bags: its samples' features.
        protocol: as they were trained.
        fits: the winner's, one for each of `runs`.
        runs: position of the fold, and seed.
        source: of the same bags.
        trials: how many configurations competed.
    """
    training = training_kind(data.task.kind)
    views = [view_fold(data, fold, protocol) for fold in range(len(data.folds))]
    names = [f"{data.folds[fold].name}/{seed}" for fold, seed in runs]
    follow_up, medians = {}, {}
    if training == SURVIVAL:
        follow_up = {view.fold: view.follow_up for view in views}
        for name, fit, (fold, _) in zip(names, fits, runs, strict=True):
            medians[name] = float(np.median(predict(fit, source, data.folds[fold].train)))
    return PredictionFacts(
        kind=training,
        metric=data.task.metric,
        data_source=data.data_source,
        class_names=data.class_names,
        config=to_dict(fits[0].config),
        digests=digests(data, bags),
        protocol=protocol.name,
        warning=protocol.warning,
        trials=trials,
        leaked_patients=data.leaked_patients,
        follow_up=follow_up,
        median_risk=medians,
        val_scores={name: fit.best_score for name, fit in zip(names, fits, strict=True)},
        extra={
            "dropped": dict(data.dropped),
            "split_source": data.split_source,
            "label_source": data.label_source,
            "unit": data.task.unit,
            "made_by": list(bags.made_by),
            "edges": _edges(views, fits[0]),
            **({} if data.genes is None else {"genes": dict(data.genes.facts)}),
        },
    )


def _edges(views: Sequence[FoldView], fit: FitResult) -> dict[str, list[float]]:
    """Fold → edges of the time bins, in months, of models in discrete time."""
    if fit.scores != "discrete":
        return {}
    return {
        view.fold: bin_edges(view.bin_times, view.bin_events, fit.config.bins).tolist()
        for view in views
    }


def model_facts(
    study: Study, data: TaskData, facts: PredictionFacts, fit: FitResult
) -> dict[str, Any]:
    """What an external evaluation, and a prediction of new slides, must know of a model."""
    return {
        "study": to_dict(study),
        "training": facts.kind,
        "class_names": list(data.class_names),
        "config": dict(facts.config),
        "digests": dict(facts.digests),
        "protocol": facts.protocol,
        "warning": facts.warning,
        "trials": facts.trials,
        "leaked_patients": facts.leaked_patients,
        "follow_up": facts.follow_up.get(fit.fold),
        "median_risk": facts.median_risk.get(f"{fit.fold}/{fit.seed}"),
        "edges": facts.extra["edges"].get(fit.fold),
        "unit": facts.extra["unit"],
        "made_by": facts.extra["made_by"],
    }
