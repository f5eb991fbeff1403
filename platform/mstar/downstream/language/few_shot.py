"""Few-shot classification: k slides a class to learn from, drawn anew many times.

    few_prototype   as the paper's: of a class's slides the patches most like its text; their mean
                    is the class, and a slide's score is that of its patches most like it
    few_linear      logistic regression of the slides' mean features, with a stated penalty
    few_abmil       ABMIL, the one training loop; its last epoch, as there is nothing to choose by

Slides to learn from are drawn from the training part, the same for every method and encoder: draw r
of k slides depends on the task, fold, k and r alone. The test part is scored by every one of them.
The study's row is of one k, stated beforehand (the largest that every class has in every fold),
each draw a seed. A task with several folds is drawn for and scored in each.

    models/                  what was learnt from each draw of that k, for `mstar predict`
    curve.csv, curve.png     every k: mean over draws, its interval over patients, and the draws'
                             own spread
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from mstar.data.tables import write_table
from mstar.data.task_data import TaskData, TaskFold
from mstar.data.tasks import Task
from mstar.downstream.bags import PackedBags
from mstar.downstream.family_job import FamilyJob, FamilyOutcome, FamilySources
from mstar.downstream.figures import figure_png
from mstar.downstream.fold_views import part_of
from mstar.downstream.language.few_shot_curve import curve_figure
from mstar.downstream.language.few_shot_methods import METHODS, Scores, Told
from mstar.downstream.language.few_shot_models import save_models
from mstar.downstream.language.options import FewPrototypeOptions, FewShotOptions
from mstar.downstream.language.prompts import find_prompts
from mstar.downstream.statistics.bootstrap import fold_estimate, seed_values
from mstar.downstream.statistics.evaluated import Evaluated
from mstar.errors import SplitError
from mstar.storage import objects
from mstar.training.seeds import seed_of

CURVE_METRICS = ("macro_auc", "balanced_accuracy")
CURVE_RESAMPLES = 300
CURVE, FIGURE = "curve.csv", "figures/curve.png"


def check(task: Task, sources: FamilySources, options: Any, data: TaskData) -> None:
    """Raises when a class is too small for every k, or the prototypes' prompts are bad."""
    usable_ks(data, options)
    if isinstance(options, FewPrototypeOptions):
        find_prompts(task, sources.prompts)


def run(job: FamilyJob) -> FamilyOutcome:
    """Learn from every draw and score the test part with each."""
    options: FewShotOptions = job.options
    ks = usable_ks(job.data, options)
    row_k = options.k or ks[-1]
    if row_k not in ks:
        raise SplitError(
            f"{job.data.label_source}: expected {row_k} training slides of every class, got "
            f"{ks[-1]} at most. Lower few-shot k."
        )
    bags = job.bags()
    told = [_fold_told(job, bags, fold, ks, row_k) for fold in range(len(job.data.folds))]
    save_models(job, row_k, [own.models for own in told], bags.made_by)
    scores = [own.scores for own in told]
    curve = curve_of(job, scores)
    write_table(objects.join(job.folder, CURVE), pa.Table.from_pylist(curve))
    facts = job.facts(
        "classification",
        bags.digest,
        extra={"k": row_k, "repeats": options.repeats, "curve": curve},
    )
    rows = {
        (fold, r + 1): own[row_k, r]
        for fold, own in enumerate(scores)
        for r in range(options.repeats)
    }
    table = job.predictions(job.part, rows, facts)
    figures = _figures(job, curve) if job.figures else ()
    named = {f"k{row['k']}_{row['metric']}": row["value"] for row in curve}
    return FamilyOutcome(predictions={job.part: table}, figures=figures, scores=named)


def _fold_told(job: FamilyJob, bags: PackedBags, fold: int, ks: Sequence[int], keep: int) -> Told:
    """What a method says of the test part of a fold after every draw."""
    alone = replace(job, data=replace(job.data, folds=(job.data.folds[fold],)))
    draws = {
        (k, r): support(job.data, k, r, fold=fold) for k in ks for r in range(job.options.repeats)
    }
    return METHODS[job.study.head](alone, bags, draws, keep)


def usable_ks(data: TaskData, options: FewShotOptions) -> tuple[int, ...]:
    """The k that every class has training slides for, in every fold.

    Raises:
        SplitError: a class has none.
    """
    counts = np.array([_class_counts(data, fold.train) for fold in data.folds]).min(axis=0)
    found = tuple(k for k in options.all_ks if k <= counts.min())
    if not found:
        name = data.class_names[int(np.argmin(counts))]
        raise SplitError(
            f"{data.label_source}: expected {options.all_ks[0]} training slides or more of every "
            f"class, got {counts.min()} of {name}. Give the part more, or lower few-shot ks."
        )
    return found


def _class_counts(data: TaskData, places: Int64[np.ndarray, " sample"]) -> list[int]:
    labels = [data.samples[at].label for at in places.tolist()]
    return [labels.count(code) for code in range(len(data.class_names))]


def support(data: TaskData, k: int, draw: int, *, fold: int = 0) -> Int64[np.ndarray, " support"]:
    """`k` training slides of each class of a fold, of different patients while there are enough."""
    # a task of one fold draws as it did before there were several
    of_fold = (data.folds[fold].name,) if len(data.folds) > 1 else ()
    rng = np.random.default_rng(seed_of("few-shot", data.task.task_id, k, draw, *of_fold))
    train = data.folds[fold].train
    chosen: list[int] = []
    for code in range(len(data.class_names)):
        own = [at for at in train.tolist() if data.samples[at].label == code]
        own.sort(key=lambda at: (data.samples[at].case_id, data.samples[at].slides))
        order = [own[place] for place in rng.permutation(len(own))]
        chosen += _different_patients(data, order)[:k]
    return np.array(sorted(chosen), np.int64)


def _different_patients(data: TaskData, order: list[int]) -> list[int]:
    """The order with each patient's first slide before anybody's second."""
    seen: dict[str, int] = {}
    turns = []
    for at in order:
        patient = data.patients[at]
        turns.append(seen.get(patient, 0))
        seen[patient] = turns[-1] + 1
    return [at for _, at in sorted(zip(turns, order, strict=True), key=lambda pair: pair[0])]


def curve_of(job: FamilyJob, scores: Sequence[Scores]) -> list[dict[str, Any]]:
    """Of every k and metric: the mean over draws and folds, its interval over patients, the spread.

    Args:
        job: the study.
        scores: for each fold, (k, draw) → scores of its test part.
    """
    rows: list[dict[str, Any]] = []
    for k in sorted({k for k, _ in scores[0]}):
        parts = [
            part
            for fold, own in zip(job.data.folds, scores, strict=True)
            for part in _evaluated(job, fold, own, k)
        ]
        for metric in CURVE_METRICS:
            one = fold_estimate(metric, parts, resamples=CURVE_RESAMPLES)
            low, high = np.nanpercentile(seed_values(metric, parts), [2.5, 97.5])
            rows.append(
                {
                    "k": k,
                    "metric": metric,
                    "value": one.value,
                    "low": one.low,
                    "high": one.high,
                    "draws_low": float(low),
                    "draws_high": float(high),
                    "draws": len({part.seed for part in parts}),
                }
            )
    return rows


def _evaluated(job: FamilyJob, fold: TaskFold, scores: Scores, k: int) -> list[Evaluated]:
    """The test part of a fold as every draw of `k` slides scores it."""
    part = part_of(job.data, job.part, fold.test)
    return [
        Evaluated(
            patients=part.patients, scores=own.astype(np.float64), labels=part.labels,
            fold=fold.name, seed=draw,
        )
        for (of_k, draw), own in scores.items()
        if of_k == k
    ]  # fmt: skip


def _figures(job: FamilyJob, curve: list[dict[str, Any]]) -> tuple[str, ...]:
    uri = objects.join(job.folder, *FIGURE.split("/"))
    title = f"{job.data.task.task_id}, {job.study.encoder}"
    figure = curve_figure({job.study.head: curve}, title=title, generated=_generated(job))
    objects.write_whole(uri, figure_png(figure))
    return (uri,)


def _generated(job: FamilyJob) -> bool:
    return job.data.data_source == "generated"
