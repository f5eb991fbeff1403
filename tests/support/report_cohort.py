"""A generated cohort with reports and facts, and features that carry its factors: no slide painted.

A slide's features are noise of which some axes are shifted by the case's cancer type, grade,
mutation and pathway. Shuffled: by those of another case of the same cancer type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mstar.cohorts.generated.config import GenerateConfig
from mstar.cohorts.generated.factors import CaseFactors, iter_cases, slide_ids_of
from mstar.cohorts.generated.facts import write_facts
from mstar.cohorts.generated.reports import compose
from mstar.data.label_tables import Match, Sample
from mstar.data.reports import Report, clean_report, write_reports
from mstar.data.task_data import TaskData, TaskFold
from mstar.data.tasks import Task
from mstar.downstream.bags import PackedBags, load_bags
from support.planted_tasks import write_store

DIM = 16
SMALL = {
    "d_vf": 32, "width": 32, "ff": 64, "heads": 4, "decoder_layers": 2, "region_tokens": 8,
    "memory_slots": 32, "memory_top": 16, "prototypes": 4, "feature_dropout": 0.0, "dropout": 0.0,
}  # fmt: skip
"""Sizes of a model for tests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportCohort:
    """Where the cohort and its features are, and the task as a sweep would prepare it."""

    folder: str
    store: str
    data: TaskData
    bags: PackedBags
    cases: tuple[CaseFactors, ...]


def report_cohort(
    root: Path,
    *,
    cases: int = 60,
    shuffled: bool = False,
    seed: int = 0,
    cancer_types: int = 2,
    noise: float = 1.0,
    strength: float = 2.0,
    patches: tuple[int, int] = (4, 12),
) -> ReportCohort:
    """The cohort; the split is 70:10:20 by place."""
    config = GenerateConfig(
        out=str(root / "C"), cases=cases, seed=seed, num_cancer_types=cancer_types,
        missing_report=0.0, slides_per_case_max=1, noise=noise,
    )  # fmt: skip
    drawn = tuple(iter_cases(config))
    texts = {case.case_id: clean_report(compose(config, case)) for case in drawn}
    write_reports(f"{config.out}/reports.csv", {c: Report(text=t) for c, t in texts.items()})
    write_facts(config.out, config, drawn)
    shown = within_type(drawn, seed) if shuffled else drawn
    rows = {
        slide: planted_rows(config, other, strength, patches)
        for case, other in zip(drawn, shown, strict=True)
        for slide in slide_ids_of(case)
    }
    store = write_store(root / "F", rows)
    data = report_task_data(drawn)
    bags = load_bags(data.samples, store, cache_root=str(root / "cache"))
    return ReportCohort(folder=config.out, store=str(root / "F"), data=data, bags=bags, cases=drawn)


def planted_rows(
    config: GenerateConfig, case: CaseFactors, strength: float, patches: tuple[int, int]
) -> np.ndarray:
    """Patches of a case, whose axes 8 to 10 carry grade, mutation and pathway."""
    rng = np.random.default_rng([config.seed, 99, case.index])
    rows = rng.standard_normal((int(rng.integers(*patches)), DIM))
    rows[:, config.cancer_types.index(case.cancer_type)] += strength
    shifts = (case.grade - 2.0, 2.0 * case.mutation - 1.0, 2.0 * (case.pathway - 0.5))
    rows[:, 8:11] += strength * np.asarray(shifts)
    return rows.astype(np.float16)


def within_type(cases: Sequence[CaseFactors], seed: int) -> tuple[CaseFactors, ...]:
    """Each case's place taken by another of its cancer type."""
    rng = np.random.default_rng([seed, 7])
    places = np.arange(len(cases))
    for name in sorted({case.cancer_type for case in cases}):
        own = np.asarray([at for at, case in enumerate(cases) if case.cancer_type == name])
        places[own] = np.roll(own[order := rng.permutation(len(own))], 1)[np.argsort(order)]
    return tuple(cases[at] for at in places.tolist())


def report_task_data(
    cases: Sequence[CaseFactors], *, trained_on: str | None = None, task_id: str = "reports"
) -> TaskData:
    """The task of some cases, cut 70:10:20; all of it is tested where it is external."""
    samples = tuple(
        Sample(case_id=case.case_id, slides=slide_ids_of(case), row=at + 1, patient=case.case_id)
        for at, case in enumerate(cases)
    )
    place = np.arange(len(cases))
    tenth = place % 10
    parts = {"train": tenth < 7, "val": tenth == 7, "test": tenth > 7}
    if trained_on:
        parts = {"train": place < 0, "val": place < 0, "test": place >= 0}
    fold = TaskFold(name="0", **{name: place[own] for name, own in parts.items()})
    task = Task(
        task_id=task_id, kind="report_generation", metric="bleu_meteor_rouge",
        trained_on=trained_on,
    )  # fmt: skip
    return TaskData(
        task=task,
        samples=samples,
        patients=tuple(sample.patient for sample in samples),
        folds=(fold,),
        class_names=(),
        digest="l" * 64,
        split_digest="s" * 64,
        split_source="the test",
        label_source="none",
        data_source="generated",
        dropped={},
        leaked_patients=0,
        match=Match(rule="exact", counts={}, rate=1.0, resolved={}, ambiguous={}, missing=()),
    )
