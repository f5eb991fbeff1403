"""Cross-modal retrieval: a case's slides find its report (or RNA), and the other way round.

The gallery is the test part. Near-duplicate reports, and several cases of one patient, count as
each other's match. Every query gives a row of `RETRIEVAL_COLUMNS`: whether its match is among the
first 1, 5, 10, 50 of all cases, and of those of its cancer type, in both ways. Chance, and what a
model that knows the cancer type alone would reach, stand in study.json and in the predictions'
metadata.

    mi_zero       mean cosine of the report with the slides' best patches
    slide_text    cosine of the report with the slide vector
    slide_rna     cosine of the RNA vector with the slide vector
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64

from mstar.data.cases import Case, read_cases
from mstar.data.report_duplicates import near_duplicates
from mstar.data.reports import ReportTable, read_reports
from mstar.data.rna.store import ExpressionStore
from mstar.data.task_data import TaskData
from mstar.data.tasks import Task
from mstar.downstream.bags import PackedBags
from mstar.downstream.family_job import FamilyJob, FamilyOutcome, FamilySources
from mstar.downstream.language.encoders import GeneSide, PatchSide, SlideSide, TextSide
from mstar.downstream.language.options import MiZeroOptions, SlideRnaOptions
from mstar.downstream.language.pooling import text_scores
from mstar.downstream.statistics.measured import KS
from mstar.errors import CohortError
from mstar.losses.recall import Standing, any_order, similarity, standing
from mstar.storage import objects

FEWEST = 2
DECIMALS = 6  # of a cosine, as in stage 1: closer scores are a tie


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Queries:
    """The cases that take part.

    places: positions among the task's samples.
    keys: of their reports, or of their RNA rows.
    cancer: code of the type.
    """

    places: Int64[np.ndarray, " case"]
    keys: tuple[str, ...]
    cancer: Int64[np.ndarray, " case"]
    patients: tuple[str, ...]


def check(task: Task, sources: FamilySources, options: Any, data: TaskData) -> None:
    """Raises CohortError when too few test cases have what they are to be found by."""
    del task
    find_queries(data, sources, rna=isinstance(options, SlideRnaOptions))


def run(job: FamilyJob) -> FamilyOutcome:
    """Score every pair of the test part, both ways."""
    rna = isinstance(job.options, SlideRnaOptions)
    queries = find_queries(job.data, job.sources, rna=rna)
    bags = job.bags()
    scores, groups = _pair_scores(job, bags, queries, rna)
    measures, yardsticks = measure(scores, queries.cancer, groups)
    dropped = len(job.data.folds[0].test) - len(queries.places)
    named = "RNA" if rna else "a report"
    facts = job.facts(
        "retrieval",
        bags.digest,
        class_names=(),
        extra={
            "gallery": len(queries.places),
            "cancer_types": len(set(queries.cancer.tolist())),
            "without": {f"no {named.removeprefix('a ')}": dropped},
            "yardsticks": yardsticks,
        },
    )
    table = job.predictions(job.part, {(0, 1): measures}, facts, places=queries.places)
    return FamilyOutcome(predictions={job.part: table}, scores=yardsticks)


def find_queries(data: TaskData, sources: FamilySources, *, rna: bool) -> Queries:
    """The test cases that have a report (or RNA).

    Raises:
        CohortError: a case is not in the cohort, or fewer than two have what is needed.
    """
    uri = objects.join(sources.cohort, "cases.csv")
    cases = {case.case_id: case for case in read_cases(uri)}
    reports = None if rna else read_reports(objects.join(sources.cohort, "reports.csv"))
    store = ExpressionStore.open(objects.join(sources.cohort, "expression")) if rna else None
    found: list[tuple[int, str, str]] = []
    for place in data.folds[0].test.tolist():
        sample = data.samples[place]
        case = cases.get(sample.case_id)
        if case is None:
            raise CohortError(
                f"{data.label_source}: row {sample.row:,}, case {sample.case_id}: expected a case "
                f"of {uri}, got none. Build the cohort with it, or drop the row."
            )
        key = _key(case, reports, store)
        if key is not None:
            found.append((place, key, case.cancer_type))
    if len(found) < FEWEST:
        named = "RNA" if rna else "a report with text"
        raise CohortError(
            f"{data.label_source}: expected {FEWEST} test cases or more with {named} in "
            f"{sources.cohort}, got {len(found)}. Give the cohort that has them with --cohort."
        )
    types = sorted({cancer for _, _, cancer in found})
    return Queries(
        places=np.array([place for place, _, _ in found], np.int64),
        keys=tuple(key for _, key, _ in found),
        cancer=np.array([types.index(cancer) for _, _, cancer in found], np.int64),
        patients=tuple(data.patients[place] for place, _, _ in found),
    )


def _key(case: Case, reports: ReportTable | None, store: ExpressionStore | None) -> str | None:
    if reports is not None:
        return case.report if case.report is not None and case.report in reports else None
    assert store is not None
    return case.rna if case.rna is not None and case.rna in store else None


def _pair_scores(
    job: FamilyJob, bags: PackedBags, queries: Queries, rna: bool
) -> tuple[Float32[np.ndarray, "slide other"], Int64[np.ndarray, " case"]]:
    """Scores of the cases' slides (rows) with reports or RNA (columns), and who matches whom."""
    folder, options = job.sources.cohort, job.options
    if rna:
        gene_side = GeneSide(job.sources.stage1, batch=options.batch, device=job.device)
        store = ExpressionStore.open(objects.join(folder, "expression"))
        others = gene_side.vectors(store, queries.keys)
        groups = np.arange(len(queries.keys))
    else:
        reports = read_reports(objects.join(folder, "reports.csv"))
        text_side = TextSide(job.sources.stage1, job.device)
        names = [f"{folder}/reports.csv: report of case {key}" for key in queries.keys]
        ids = text_side.token_ids([reports[key].text for key in queries.keys], names)
        others = text_side.vectors(ids)
        groups = near_duplicates(
            queries.keys, dict(zip(queries.keys, ids, strict=True)).__getitem__
        )
    groups = joined(groups, queries.patients)
    if isinstance(options, MiZeroOptions):
        return _patch_scores(job, bags, queries, others), groups
    slide_side = SlideSide(job.sources.stage1, window=options.window, device=job.device)
    slides = torch.stack(
        [slide_side.vector(bags.bag(at), bags.ids[at]) for at in queries.places.tolist()]
    )
    return similarity(slides.cpu().numpy(), others).astype(np.float32), groups


def _patch_scores(
    job: FamilyJob,
    bags: PackedBags,
    queries: Queries,
    reports: Float32[np.ndarray, "report dim"],
) -> Float32[np.ndarray, "slide report"]:
    options = job.options
    side = PatchSide(
        job.sources.stage1, job.sources.stage2, space=options.space, window=options.window,
        device=job.device,
    )  # fmt: skip
    texts = torch.from_numpy(reports).to(job.device)
    rows = [
        text_scores(side.vectors(bags.bag(at)), texts, [options.top])[0].cpu().numpy()
        for at in queries.places.tolist()
    ]
    return np.stack(rows).round(DECIMALS)


def joined(
    groups: Int64[np.ndarray, " case"], patients: Sequence[str]
) -> Int64[np.ndarray, " case"]:
    """Groups in which cases of one patient are together too."""
    merged = groups.astype(np.int64).copy()
    first: dict[str, int] = {}
    for place, patient in enumerate(patients):
        home = first.setdefault(patient, place)
        merged[merged == merged[place]] = merged[home]
    return merged


def measure(
    scores: Float[np.ndarray, "slide other"],
    cancer: Int64[np.ndarray, " case"],
    groups: Int64[np.ndarray, " case"],
) -> tuple[Float32[np.ndarray, "case column"], dict[str, float]]:
    """A row of `RETRIEVAL_COLUMNS` of each case, and chance and the ceiling of the type by k."""
    match = groups[:, None] == groups[None, :]
    same = cancer[:, None] == cancer[None, :]
    found, ranks = [], []
    for one in (scores, scores.T):
        for gallery in (np.ones_like(match), same):
            where = standing(one, match & gallery, gallery)
            found += [where.found(k) for k in KS]
            if gallery is not same:
                ranks.append(where.rank)
    return np.stack([*found, *ranks], axis=1).astype(np.float32), _yardsticks(match, same)


def _yardsticks(
    match: Bool[np.ndarray, "slide other"], same: Bool[np.ndarray, "slide other"]
) -> dict[str, float]:
    """Recalls of a random order; and of one by the type alone, which within it is chance."""
    by_chance: Standing = any_order(np.full(len(match), len(match)), match.sum(1))
    by_type: Standing = any_order(same.sum(1), (match & same).sum(1))
    made = {f"chance_recall_at_{k}": float(by_chance.found(k).mean()) for k in KS}
    return made | {f"type_recall_at_{k}": float(by_type.found(k).mean()) for k in KS}
