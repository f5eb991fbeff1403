"""A task ready to be run: samples whose features exist, cut into folds, checked.

    table = read_label_table("labels/tcga_brca_os.csv", task)
    data = prepare_task(task, table, stores=[store], registry=read_registry("C"))
    data.folds[0].train                 # positions in data.samples

What is wrong is an error with file, row and way out; what is left out is counted by reason.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64

from mstar.data.label_tables.matching import Match
from mstar.data.label_tables.samples import LabelTable, Sample
from mstar.data.splits.leaks import PARTS
from mstar.data.splits.registry import SplitRegistry, Unassigned
from mstar.data.splits.schemes import Split
from mstar.data.task_checks import check_parts
from mstar.data.task_features import Stores, store_ids, with_features
from mstar.data.task_folds import (
    Cut,
    SplitChoice,
    cut_folds,
    leaked_patients,
    seen_in_pretraining,
)
from mstar.data.task_genes import GeneReader, TaskGenes
from mstar.data.tasks import Task
from mstar.errors import ConfigError

_NEEDED = {"train_only": ("train", "val"), "test_fold": ("test",)}
"""Parts that a split policy cannot do without; all three where it is not here."""

NEEDS_GENES = (
    "it needs gene expression: give --cohort C (its expression/ and signatures.csv), or --genes "
    "and --signatures."
)

__all__ = ["NEEDS_GENES", "TaskData", "TaskFold", "prepare_task", "store_ids"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TaskFold:
    """One fold: positions in the samples of its task, each ascending."""

    name: str
    train: Int64[np.ndarray, " train"]
    val: Int64[np.ndarray, " val"]
    test: Int64[np.ndarray, " test"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TaskData:
    """A task and all that is needed to run it but the features themselves.

    samples: in the order of the table; their slides are ids of the stores, all of them there.
    patients: of each sample, the cluster that resampling draws.
    digest: of samples, labels and classes.
    split_digest: of the registry or split that they are cut from, else of the parts.
    split_source: who says which part a sample is in.
    label_source: address of the label table.
    dropped: reason → samples that are left out.
    leaked_patients: in two parts of a fold, or held out though pretraining sees them; above 0 only
        in a published split that was asked for.
    match: how the slides were found.
    genes: expression of the samples, in tasks of kind fusion_survival.
    """

    task: Task
    samples: tuple[Sample, ...]
    patients: tuple[str, ...]
    folds: tuple[TaskFold, ...]
    class_names: tuple[str, ...]
    digest: str
    split_digest: str
    split_source: str
    label_source: str
    data_source: str
    dropped: Mapping[str, int]
    leaked_patients: int
    match: Match
    genes: TaskGenes | None = None


def prepare_task(
    task: Task,
    table: LabelTable,
    *,
    stores: Stores,
    registry: SplitRegistry | None = None,
    split: Split | None = None,
    published_split: bool = False,
    unassigned: Unassigned = "train",
    max_missing: float = 0.0,
    val_share: float = 0.1,
    seed: int = 0,
    genes: GeneReader | None = None,
) -> TaskData:
    """Match, cut and check the samples of a task that is run by itself.

    Args:
        task: any but an external one.
        table: its labels.
        stores: feature stores of one encoder, or the sets of their slide ids.
        registry: the cohort's; decides wherever it knows the cases.
        split: a further split of the cohort (k-fold, say) in the registry's place.
        published_split: take the table's own folds whatever they leak, and count that.
        unassigned: what becomes of cases that the registry gives no part.
        max_missing: share of the samples that may lack features and be left out, 0 to 1.
        val_share: share of the training patients that validates in a fold without such a part.
        seed: of that draw.
        genes: gene expression, for tasks of kind fusion_survival; samples without are left out.

    Raises:
        CohortError: samples lack gene expression where that is refused.
        ConfigError: the kind cannot be run yet, or needs gene expression.
        FeatureError: more samples lack features than allowed.
        SplitError: no split, a leak, or a part that cannot be learnt from or scored.
        TableError: an id may mean several slides.
    """
    assert table.task_id == task.task_id
    samples, match, dropped = with_features(table, stores, max_missing)
    samples = keep_with_genes(task, table, samples, genes, dropped)
    published = published_split and bool(table.folds)
    choice = SplitChoice(
        registry=registry, split=split, published=published, unassigned=unassigned,
        val_share=val_share, seed=seed,
    )  # fmt: skip
    cut = cut_folds(task, table, samples, choice)
    leaked = leaked_patients(table, samples, cut, allowed=published)
    if published:
        leaked |= seen_in_pretraining(samples, cut, registry)
    needed = _NEEDED.get(task.split_policy, PARTS)
    data = assemble(task, table, samples, cut, match, dropped, len(leaked), needed)
    return add_genes(data, genes)


def keep_with_genes(
    task: Task,
    table: LabelTable,
    samples: list[Sample],
    genes: GeneReader | None,
    dropped: Counter[str],
) -> list[Sample]:
    """Of a fusion task the samples that have gene expression too; of others all."""
    if not task.reads_genes:
        return samples
    if genes is None:
        raise ConfigError(f"task {task.task_id}: {NEEDS_GENES}")
    kept, left_out = genes.with_genes(table, samples)
    dropped.update(left_out)
    return kept


def add_genes(data: TaskData, genes: GeneReader | None) -> TaskData:
    """The task with the gene expression of its samples, where it reads any."""
    if genes is None or not data.task.reads_genes:
        return data
    return replace(data, genes=genes.of(data.samples))


def assemble(
    task: Task,
    table: LabelTable,
    samples: Sequence[Sample],
    cut: Cut,
    match: Match,
    dropped: Counter[str],
    leaked: int,
    needed: Sequence[str],
) -> TaskData:
    """The samples that a fold uses, their folds as positions, everything checked."""
    used = [any(parts) for parts in zip(*cut.folds.values(), strict=True)]
    kept = tuple(sample for sample, is_used in zip(samples, used, strict=True) if is_used)
    if len(kept) < len(samples):
        dropped["in no part of the split"] += len(samples) - len(kept)
    folds = []
    for name, parts in cut.folds.items():
        left = [part for part, is_used in zip(parts, used, strict=True) if is_used]
        check_parts(task, table, name, kept, left, needed=needed)
        folds.append(_fold(name, left))
    return TaskData(
        task=task,
        samples=kept,
        patients=tuple(sample.patient for sample in kept),
        folds=tuple(folds),
        class_names=task.class_names,
        digest=_digest(task, kept),
        split_digest=cut.digest,
        split_source=cut.source,
        label_source=table.uri,
        data_source=table.data_source,
        dropped=dict(dropped),
        leaked_patients=leaked,
        match=match,
    )


def _fold(name: str, parts: Sequence[str]) -> TaskFold:
    at = {part: [place for place, its in enumerate(parts) if its == part] for part in set(parts)}

    def positions(part: str) -> Int64[np.ndarray, " place"]:
        return np.array(at.get(part, []), np.int64)

    return TaskFold(
        name=name, train=positions("train"), val=positions("val"), test=positions("test")
    )


def _digest(task: Task, samples: Iterable[Sample]) -> str:
    """The sha256 of the task, its classes and every sample, in order."""
    lines = [json.dumps([task.task_id, task.kind, task.class_names])]
    lines += [
        json.dumps([s.case_id, s.slides, s.label, s.time_months, s.event], ensure_ascii=False)
        for s in samples
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
