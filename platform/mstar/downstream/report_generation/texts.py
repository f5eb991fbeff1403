"""Which samples of a task have a report, and reports as tokens for teacher forcing.

    read      [BEGIN] t1 t2 … tn          predicted    t1 t2 … tn [END]

A longer report gives its first `max_tokens` predicted tokens, and then no [END]: it does not end
there. References for scores are always whole.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from mstar.data.label_tables import Sample
from mstar.data.report_vocabulary import ReportVocabulary
from mstar.data.reports import Report, ReportTable, read_reports
from mstar.data.task_data import TaskData, TaskFold
from mstar.downstream.report_generation.words import words_of
from mstar.errors import SplitError, TableError
from mstar.storage import objects

MISSING, WORDLESS = "no report", "a report without a word"
NAMED = 5
IGNORED = -100  # a target that no loss looks at


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReports:
    """A task whose samples all have a report.

    texts: of each sample. left_out: reason → cases that are not among the samples any more.
    """

    data: TaskData
    texts: tuple[str, ...]
    left_out: Mapping[str, tuple[str, ...]]

    def lines(self) -> list[str]:
        """What was left out, with the first of the cases by name."""
        return [
            f"left out: {len(cases):,} ({reason}: {shortened(cases)})"
            for reason, cases in self.left_out.items()
            if cases
        ]


def read_cohort_reports(cohort: str, reports: str = "") -> ReportTable:
    """The reports of a cohort, or of a table (or HistGen's JSON) given in their place."""
    if reports.endswith(".json"):
        return read_annotations(reports)
    return read_reports(reports or objects.join(cohort, "reports.csv"))


def read_annotations(uri: str) -> ReportTable:
    """HistGen's file of reports: `{"train": [{"id": …, "report": …}, …], "val": …, "test": …}`.

    Its parts are not looked at: the label table or the split registry decides.

    Raises:
        TableError: it is something else, or an id comes twice.
    """
    reports: dict[str, Report] = {}
    empty: list[str] = []
    for part, number, row in _entries(uri):
        name, text = row.get("id"), row.get("report")
        if not isinstance(name, str) or not isinstance(text, str) or name in reports:
            raise TableError(
                f"{uri}: part {part}, entry {number + 1:,}: expected a new id and a report, both "
                f"text, got id {name!r}. Correct the entry."
            )
        if words_of(text):
            reports[name] = Report(text=text)
        else:
            empty.append(name)
    return ReportTable(reports=reports, empty=tuple(sorted(empty)))


def _entries(uri: str) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    try:
        parts = json.loads(objects.read_bytes(uri))
        for part, rows in parts.items():
            for number, row in enumerate(rows):
                yield part, number, dict(row)
    except (AttributeError, TypeError, ValueError) as error:
        raise TableError(
            f"{uri}: expected {{part: [{{id, report}}, …]}}, got {type(error).__name__}. Give "
            "HistGen's annotation file, or a table case_id,text."
        ) from error


def join_reports(data: TaskData, reports: ReportTable) -> TaskReports:
    """Keep the samples that have a report with a word in it: the case's own, or its slide's.

    Raises:
        SplitError: a part is left without any.
    """
    empty = set(reports.empty)
    keys = [_key(sample, reports, empty) for sample in data.samples]
    reasons = ["" if key in reports else WORDLESS if key in empty else MISSING for key in keys]
    left_out = {
        reason: tuple(
            sample.case_id
            for sample, own in zip(data.samples, reasons, strict=True)
            if own == reason
        )
        for reason in (MISSING, WORDLESS)
    }
    kept = [at for at, reason in enumerate(reasons) if not reason]
    dropped = Counter(data.dropped) + Counter({why: len(cases) for why, cases in left_out.items()})
    joined = replace(
        data,
        samples=tuple(data.samples[at] for at in kept),
        patients=tuple(data.patients[at] for at in kept),
        folds=tuple(_kept_fold(fold, kept) for fold in data.folds),
        dropped={reason: count for reason, count in dropped.items() if count},
    )
    _check(data, joined, left_out)
    texts = tuple(reports[keys[at]].text for at in kept)
    return TaskReports(data=joined, texts=texts, left_out=left_out)


def shortened(cases: Sequence[str]) -> str:
    """The first ids, and how many more there are."""
    more = f" and {len(cases) - NAMED:,} more" if len(cases) > NAMED else ""
    return ", ".join(cases[:NAMED]) + more


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenTable:
    """Reports of some samples, as they are read and predicted.

    read, predicted: padded to the longest; `predicted` is IGNORED behind the end.
    lengths: predicted tokens of each.
    cut: positions of the reports that are longer than what is trained on.
    """

    read: Int64[Tensor, "sample token"]
    predicted: Int64[Tensor, "sample token"]
    lengths: Int64[Tensor, " sample"]
    cut: tuple[int, ...]

    def to(self, device: torch.device) -> "TokenTable":
        """On a device."""
        return replace(
            self,
            read=self.read.to(device),
            predicted=self.predicted.to(device),
            lengths=self.lengths.to(device),
        )

    def of(self, rows: Int64[Tensor, " bag"]) -> tuple[Tensor, Tensor]:
        """What is read and predicted of some samples, no wider than the longest of them."""
        width = int(self.lengths[rows].max())
        return self.read[rows, :width], self.predicted[rows, :width]


def tokenise(vocabulary: ReportVocabulary, texts: Sequence[str], max_tokens: int) -> TokenTable:
    """Reports for teacher forcing."""
    ids = vocabulary.encode(texts)
    targets = [np.append(one, vocabulary.end)[:max_tokens] for one in ids]
    width = max((len(one) for one in targets), default=0)
    predicted = np.full((len(ids), width), IGNORED, np.int64)
    read = np.full((len(ids), width), vocabulary.pad, np.int64)
    for row, one in enumerate(targets):
        predicted[row, : len(one)] = one
        read[row, 0] = vocabulary.begin
        read[row, 1 : len(one)] = one[:-1]
    return TokenTable(
        read=torch.from_numpy(read),
        predicted=torch.from_numpy(predicted),
        lengths=torch.tensor([len(one) for one in targets], dtype=torch.int64),
        cut=tuple(at for at, one in enumerate(ids) if len(one) + 1 > max_tokens),
    )


def _key(sample: Sample, reports: ReportTable, empty: set[str]) -> str:
    """What the sample's report goes by; its case's id where there is none."""
    names = (sample.case_id, *sample.slides)
    known = [name for name in names if name in reports] or [n for n in names if n in empty]
    return known[0] if known else sample.case_id


def _kept_fold(fold: TaskFold, kept: Sequence[int]) -> TaskFold:
    place = {old: new for new, old in enumerate(kept)}

    def moved(places: Int64[np.ndarray, " place"]) -> Int64[np.ndarray, " left"]:
        return np.asarray([place[at] for at in places.tolist() if at in place], np.int64)

    return TaskFold(
        name=fold.name, train=moved(fold.train), val=moved(fold.val), test=moved(fold.test)
    )


def _check(before: TaskData, after: TaskData, left_out: Mapping[str, tuple[str, ...]]) -> None:
    """A part that had samples needs one with a report."""
    for old, new in zip(before.folds, after.folds, strict=True):
        for part in ("train", "val", "test"):
            if len(getattr(old, part)) and not len(getattr(new, part)):
                named = "; ".join(f"{why}: {shortened(c)}" for why, c in left_out.items() if c)
                raise SplitError(
                    f"task {before.task.task_id}, fold {old.name}, part {part}: expected cases "
                    f"with a report, got none of {len(getattr(old, part)):,} ({named}). Give the "
                    "cohort that the reports are of, or a table of reports by "
                    "--option histgen.reports=FILE."
                )
