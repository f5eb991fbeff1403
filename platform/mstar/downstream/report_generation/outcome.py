"""What a study of report generation leaves: texts, pages, predictions, counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64

from mstar.data.tables import write_table
from mstar.data.task_data import TaskData
from mstar.downstream.bags import PackedBags
from mstar.downstream.family_job import FamilyJob, FamilyOutcome
from mstar.downstream.report_generation.facts import Facts
from mstar.downstream.report_generation.measures import text_measures
from mstar.downstream.report_generation.options import HistGenOptions
from mstar.downstream.report_generation.samples_page import SampleText, samples_page
from mstar.downstream.report_generation.texts import TaskReports, tokenise
from mstar.downstream.report_generation.writing import Writer, Written, reference_nll, write_reports
from mstar.downstream.statistics.generation import KIND, column
from mstar.downstream.stream import BagSource
from mstar.storage import objects

LEFT_OUT = "reports_left_out.csv"
METRIC = "bleu_4"  # of bleu_meteor_rouge the one that ranks, as it chooses on validation


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReportStudy:
    """A study with its reports."""

    job: FamilyJob
    options: HistGenOptions
    reports: TaskReports
    facts: Facts | None
    bags: PackedBags

    @property
    def data(self) -> TaskData:
        """Samples that have a report."""
        return self.reports.data

    @property
    def runs(self) -> list[tuple[int, int]]:
        """Folds × seeds."""
        return list(product(range(len(self.data.folds)), self.job.seeds))

    def places(self, part: str, fold: int) -> Int64[np.ndarray, " sample"]:
        """Positions of a part's samples."""
        cut = self.data.folds[fold]
        return cut.val if part == "val" else cut.test


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """What one model wrote about one part."""

    fold: int
    seed: int
    places: Int64[np.ndarray, " sample"]
    written: tuple[Written, ...]
    measures: Float32[np.ndarray, "sample column"]


def score_part(
    study: ReportStudy, writer: Writer, source: BagSource, part: str, fold: int, seed: int
) -> Scored:
    """Reports of a part by one model, and their measures against the whole references."""
    places = study.places(part, fold)
    written = write_reports(writer, source, places)
    references = [study.reports.texts[at] for at in places.tolist()]
    measures = text_measures(
        [one.text for one in written],
        references,
        cases=[study.data.samples[at].case_id for at in places.tolist()],
        facts=study.facts,
    )
    measures[:, column("unfinished")] = [not one.ended for one in written]
    nll, lengths = reference_nll(writer, source, places, references)
    measures[:, column("nll")], measures[:, column("tokens")] = nll, lengths
    return Scored(fold=fold, seed=seed, places=places, written=tuple(written), measures=measures)


def make_outcome(
    study: ReportStudy,
    parts: Mapping[str, Sequence[Scored]],
    writers: Sequence[Writer],
    models: tuple[str, ...],
) -> FamilyOutcome:
    job, val = study.job, [writer.fit.best_score for writer in writers]
    extra = _extra(study, parts, writers)
    names = [f"{writer.fit.fold}/{writer.fit.seed}" for writer in writers]
    facts = job.facts(
        KIND,
        study.bags.digest,
        metric=METRIC,
        val_scores=dict(zip(names, val, strict=True)),
        extra=extra,
    )
    pages = []
    for part, scored in parts.items():
        _write_texts(study, part, scored)
        pages.append(_write_page(study, part, scored))
    return FamilyOutcome(
        predictions={
            part: job.predictions(part, {(s.fold, s.seed): s.measures for s in scored}, facts)
            for part, scored in parts.items()
        },
        mean_score=float(np.mean(val)) if models else None,
        models=models,
        figures=tuple(pages),
        extra=extra,
    )


def _extra(
    study: ReportStudy, parts: Mapping[str, Sequence[Scored]], writers: Sequence[Writer]
) -> dict[str, Any]:
    """Counts that a reader of the numbers must know."""
    first = writers[0]
    tokens = tokenise(first.vocabulary, study.reports.texts, study.options.max_tokens)
    return {
        "reports_left_out": {why: len(c) for why, c in study.reports.left_out.items() if c},
        "longer_than_max_tokens": len(tokens.cut),
        "max_tokens": study.options.max_tokens,
        "vocabulary": len(first.vocabulary),
        "best_epochs": {f"{w.fit.fold}/{w.fit.seed}": w.fit.best_epoch + 1 for w in writers},
        "unfinished": {
            p: sum(not w.ended for s in own for w in s.written) for p, own in parts.items()
        },
        "empty": {
            p: int(sum(s.measures[:, column("empty")].sum() for s in own))
            for p, own in parts.items()
        },
        "facts_of": study.options.facts or ("the cohort's truth" if study.facts else "none"),
    }


def write_left_out(folder: str, reports: TaskReports) -> None:
    rows = [(case, why) for why, cases in reports.left_out.items() for case in cases]
    columns = {
        name: pa.array([row[at] for row in rows], pa.string())
        for at, name in enumerate(("case_id", "reason"))
    }
    write_table(objects.join(folder, LEFT_OUT), pa.table(columns))


def _write_texts(study: ReportStudy, part: str, scored: Sequence[Scored]) -> None:
    rows = [
        (one, at, text)
        for one in scored
        for at, text in zip(one.places.tolist(), one.written, strict=True)
    ]
    table = pa.table(
        {
            "case_id": [study.data.samples[at].case_id for _, at, _ in rows],
            "fold": [study.data.folds[one.fold].name for one, _, _ in rows],
            "seed": [one.seed for one, _, _ in rows],
            "ended": [int(text.ended) for _, _, text in rows],
            "tokens": [text.tokens for _, _, text in rows],
            "generated": [text.text for _, _, text in rows],
            "reference": [study.reports.texts[at] for _, at, _ in rows],
        }
    )
    write_table(objects.join(study.job.folder, f"reports-{part}.csv"), table)


def _write_page(study: ReportStudy, part: str, scored: Sequence[Scored]) -> str:
    """The page of the first model's texts."""
    one = scored[0]
    samples = [
        SampleText(
            case_id=study.data.samples[at].case_id,
            generated=text.text,
            reference=study.reports.texts[at],
            rouge_l=float(row[column("rouge_l")]),
            ended=text.ended,
        )
        for at, text, row in zip(one.places.tolist(), one.written, one.measures, strict=True)
    ]
    uri = objects.join(study.job.folder, f"samples-{part}.html")
    page = samples_page(
        f"{study.job.study.key}, {part}",
        samples,
        most=study.options.samples,
        generated_data=study.data.data_source == "generated",
        facts=study.facts,
    )
    objects.write_whole(uri, page.encode())
    return uri
