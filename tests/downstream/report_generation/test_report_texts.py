"""Reports of a task: what is missing or says nothing is counted and named; tokens for training."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mstar.cohorts.generated.config import GenerateConfig
from mstar.cohorts.generated.factors import iter_cases
from mstar.data.report_vocabulary import learn_vocabulary
from mstar.data.reports import Report, ReportTable
from mstar.downstream.report_generation.texts import (
    IGNORED,
    MISSING,
    WORDLESS,
    join_reports,
    read_cohort_reports,
    tokenise,
)
from mstar.errors import SplitError, TableError
from support.report_cohort import report_task_data

CASES = tuple(iter_cases(GenerateConfig(out="C", cases=20, slides_per_case_max=1)))
IDS = [case.case_id for case in CASES]


def table(without: tuple[int, ...] = (), empty: tuple[int, ...] = ()) -> ReportTable:
    kept = [name for at, name in enumerate(IDS) if at not in (*without, *empty)]
    reports = {name: Report(text=f"report of {name}") for name in kept}
    return ReportTable(reports=reports, empty=tuple(IDS[at] for at in empty))


def test_samples_without_a_report_leave_their_part_and_are_counted_by_reason() -> None:
    data = replace(report_task_data(CASES), dropped={"no features": 2})
    joined = join_reports(data, table(without=(0, 9), empty=(3,)))
    assert joined.left_out == {MISSING: (IDS[0], IDS[9]), WORDLESS: (IDS[3],)}
    assert joined.data.dropped == {"no features": 2, MISSING: 2, WORDLESS: 1}
    ids = [sample.case_id for sample in joined.data.samples]
    assert ids == [name for at, name in enumerate(IDS) if at not in (0, 3, 9)]
    assert joined.texts == tuple(f"report of {name}" for name in ids)
    for part in ("train", "val", "test"):
        before = {IDS[at] for at in getattr(data.folds[0], part).tolist()}
        after = {ids[at] for at in getattr(joined.data.folds[0], part).tolist()}
        assert after == before & set(ids)
    assert joined.lines() == [
        f"left out: 2 (no report: {IDS[0]}, {IDS[9]})",
        f"left out: 1 (a report without a word: {IDS[3]})",
    ]


def test_a_part_without_any_report_is_refused_with_its_cases() -> None:
    val = tuple(at for at in range(20) if at % 10 == 7)
    with pytest.raises(SplitError, match=rf"part val: expected cases with a report.*{IDS[7]}"):
        join_reports(report_task_data(CASES), table(without=val))


def test_histgens_annotations_are_read_by_case_or_slide(tmp_path: Path) -> None:
    data = report_task_data(CASES)
    file = tmp_path / "annotation.json"
    names = [IDS[0], *(f"{name}-1" for name in IDS[1:])]
    rows = [{"id": n, "report": f"report of {n}", "image_path": [n]} for n in names]
    rows[4]["report"] = " .. "
    file.write_text(json.dumps({"train": rows[:9], "val": rows[9:12], "test": rows[12:]}))
    joined = join_reports(data, read_cohort_reports("none", str(file)))
    assert joined.left_out == {MISSING: (), WORDLESS: (IDS[4],)}
    assert joined.texts[0] == f"report of {IDS[0]}"
    assert joined.texts[-1] == f"report of {IDS[-1]}-1"
    file.write_text(json.dumps({"train": [rows[0], rows[0]]}))
    with pytest.raises(TableError, match="part train, entry 2: expected a new id"):
        read_cohort_reports("none", str(file))
    file.write_text("[1, 2]")
    with pytest.raises(TableError, match=r"expected \{part: \[\{id, report\}"):
        read_cohort_reports("none", str(file))


def test_tokens_are_shifted_by_one_and_long_reports_have_no_end() -> None:
    vocabulary = learn_vocabulary(["a b c d e f"] * 3, size=300)
    long, short = "a b c d e f", "b"
    tokens = tokenise(vocabulary, [long, short], 4)
    (ids, own) = vocabulary.encode([long, short])
    assert tokens.read[0].tolist() == [vocabulary.begin, *ids[:3]]
    assert tokens.predicted[0].tolist() == list(ids[:4])
    assert tokens.predicted[1].tolist() == [own[0], vocabulary.end, IGNORED, IGNORED]
    assert tokens.read[1].tolist() == [vocabulary.begin, own[0], vocabulary.pad, vocabulary.pad]
    assert tokens.lengths.tolist() == [4, 2]
    assert tokens.cut == (0,)
    read, predicted = tokens.of(torch.tensor([1]))
    assert read.shape == predicted.shape == (1, 2)
    assert np.array_equal(tokenise(vocabulary, [long], 7).predicted[0, -1], vocabulary.end)
