"""Pair counts equal a pandas reference."""

import pandas as pd
from hypothesis import given, settings

from mstar.data.cases import Case
from mstar.data.modalities import PairCounts, pair_counts
from support.split_cases import cohorts, some_cases


def test_pairs_equal_a_pandas_reference() -> None:
    cases = some_cases(500)
    table = pd.DataFrame(
        {
            "wsi": [len(case.slides) > 0 for case in cases],
            "report": [case.report is not None for case in cases],
            "rna": [case.rna is not None for case in cases],
        }
    )
    pairs = table.T.astype(int) @ table.astype(int)
    counts = pair_counts(cases)
    assert counts.wsi_report == pairs.loc["wsi", "report"]
    assert counts.wsi_rna == pairs.loc["wsi", "rna"]
    assert counts.report_rna == pairs.loc["report", "rna"]
    assert (counts.wsi, counts.report, counts.rna) == tuple(table.sum())
    assert counts.all_three == table.all(axis=1).sum()
    assert counts.cases == 500
    assert counts.pairs == counts.wsi_report + counts.wsi_rna + counts.report_rna


def test_a_case_of_many_slides_counts_once() -> None:
    case = Case(case_id="a", cancer_type="BRCA", slides=("1", "2", "3"), rna="a")
    assert pair_counts([case]) == PairCounts(
        cases=1, wsi=1, report=0, rna=1, wsi_report=0, wsi_rna=1, report_rna=0, all_three=0
    )


@settings(max_examples=20, deadline=None)
@given(cohorts())
def test_cases_without_modalities_make_no_pairs(cases: list[Case]) -> None:
    assert pair_counts(cases).pairs == 0
    assert pair_counts(cases).cases == len(cases)
