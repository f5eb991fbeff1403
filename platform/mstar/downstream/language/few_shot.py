"""Few-shot classification: k slides a class to learn from, drawn anew many times.

    few_prototype   as the paper's: of a class's slides the patches most like its text; their mean
                    is the class, and a slide's score is that of its patches most like it
    few_linear      logistic regression of the slides' mean features, with a stated penalty
    few_abmil       ABMIL, the one training loop; its last epoch, as there is nothing to choose by

Slides to learn from are drawn from the training part, the same for every method and encoder: draw r
of k slides depends on the task, k and r alone. The test part is scored by every one of them. The
study's row is of one k, stated beforehand (the largest that every class has), each draw a seed.

    curve.csv, curve.png     every k: mean over draws, its interval over patients, and the draws'
                             own spread
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64

from mstar.data.tables import write_table
from mstar.data.task_data import TaskData
from mstar.data.tasks import Task
from mstar.downstream.families import FamilyJob, FamilyOutcome, FamilySources
from mstar.downstream.figures import figure_png
from mstar.downstream.fold_views import part_of
from mstar.downstream.language.few_shot_curve import curve_figure
from mstar.downstream.language.few_shot_methods import METHODS
from mstar.downstream.language.options import FewPrototypeOptions, FewShotOptions
from mstar.downstream.language.prompts import find_prompts
from mstar.downstream.statistics.bootstrap import fold_estimate, seed_values
from mstar.downstream.statistics.evaluated import Evaluated
from mstar.errors import SplitError
from mstar.storage import objects
from mstar.training.seeds import seed_of

Draws = Mapping[tuple[int, int], Int64[np.ndarray, " support"]]
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
    draws = {(k, r): support(job.data, k, r) for k in ks for r in range(options.repeats)}
    scores = METHODS[job.study.head](job, bags, draws)
    curve = curve_of(job, scores)
    write_table(objects.join(job.folder, CURVE), pa.Table.from_pylist(curve))
    facts = job.facts(
        "classification",
        bags.digest,
        extra={"k": row_k, "repeats": options.repeats, "curve": curve},
    )
    rows = {(0, r + 1): scores[row_k, r] for r in range(options.repeats)}
    table = job.predictions(job.part, rows, facts)
    figures = _figures(job, curve) if job.figures else ()
    named = {f"k{row['k']}_{row['metric']}": row["value"] for row in curve}
    return FamilyOutcome(predictions={job.part: table}, figures=figures, scores=named)


def usable_ks(data: TaskData, options: FewShotOptions) -> tuple[int, ...]:
    """The k that every class of the training part has slides for.

    Raises:
        SplitError: a class has none.
    """
    labels = [data.samples[at].label for at in data.folds[0].train.tolist()]
    counts = [labels.count(code) for code in range(len(data.class_names))]
    found = tuple(k for k in options.all_ks if k <= min(counts))
    if not found:
        name = data.class_names[int(np.argmin(counts))]
        raise SplitError(
            f"{data.label_source}: expected {options.all_ks[0]} training slides or more of every "
            f"class, got {min(counts)} of {name}. Give the part more, or lower few-shot ks."
        )
    return found


def support(data: TaskData, k: int, draw: int) -> Int64[np.ndarray, " support"]:
    """`k` training slides of each class, of different patients while enough are there."""
    rng = np.random.default_rng(seed_of("few-shot", data.task.task_id, k, draw))
    train = data.folds[0].train
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


def curve_of(
    job: FamilyJob, scores: Mapping[tuple[int, int], Float32[np.ndarray, "sample label"]]
) -> list[dict[str, Any]]:
    """Of every k and metric: the mean over draws, its interval over patients, the draws' spread."""
    part = part_of(job.data, job.part, job.data.folds[0].test)
    rows: list[dict[str, Any]] = []
    for k in sorted({k for k, _ in scores}):
        parts = [
            Evaluated(
                patients=part.patients, scores=own.astype(np.float64), labels=part.labels,
                fold="0", seed=draw,
            )
            for (of_k, draw), own in scores.items()
            if of_k == k
        ]  # fmt: skip
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
                    "draws": len(parts),
                }
            )
    return rows


def _figures(job: FamilyJob, curve: list[dict[str, Any]]) -> tuple[str, ...]:
    uri = objects.join(job.folder, *FIGURE.split("/"))
    title = f"{job.data.task.task_id}, {job.study.encoder}"
    figure = curve_figure({job.study.head: curve}, title=title, generated=_generated(job))
    objects.write_whole(uri, figure_png(figure))
    return (uri,)


def _generated(job: FamilyJob) -> bool:
    return job.data.data_source == "generated"
