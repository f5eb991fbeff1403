"""The case table: what is written is read, and what is doubtful is refused by row and column."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mstar.data.cases import CASE_COLUMNS, Case, read_cases, write_cases
from mstar.errors import TableError

HEADER = "case_id,cancer_type,slides,report,rna,split"
words = st.text("abcXYZ019-_./ é", min_size=1, max_size=8).map(lambda t: f"x{t}x")
survival = st.one_of(
    st.just((None, None)),
    st.tuples(st.floats(0, 1e4, allow_nan=False), st.integers(0, 1)),
)


@st.composite
def case_lists(draw: st.DrawFn) -> list[Case]:
    """Cases with distinct ids and distinct slides."""
    ids = draw(st.lists(words, max_size=5, unique=True))
    made = []
    for number, case_id in enumerate(ids):
        months, event = draw(survival)
        names = draw(st.lists(words, max_size=3, unique=True))
        made.append(
            Case(
                case_id=case_id,
                cancer_type=draw(words),
                slides=tuple(f"{number}/{name}" for name in names),
                report=draw(st.sampled_from([None, case_id])),
                rna=draw(st.sampled_from([None, case_id])),
                split=draw(st.sampled_from([None, "train"])),
                site=draw(st.one_of(st.none(), words)),
                os_months=months,
                os_event=event,
            )
        )
    return made


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cases=case_lists())
@pytest.mark.parametrize("name", ["cases.csv", "cases.parquet"])
def test_what_is_written_is_read(tmp_path: Path, name: str, cases: list[Case]) -> None:
    """Every field of every case, in the same order; equal cases give equal bytes."""
    uri = str(tmp_path / name)
    write_cases(uri, cases)
    first = Path(uri).read_bytes()
    assert read_cases(uri) == cases
    write_cases(uri, cases)
    assert Path(uri).read_bytes() == first


def test_pandas_reads_it_and_we_read_pandas(tmp_path: Path) -> None:
    """Lists of slides and floats for events, as pandas writes them to Parquet, are understood."""
    frame = pd.DataFrame(
        {
            "case_id": ["A", "B"],
            "cancer_type": ["BRCA", "mine"],
            "slides": [["s1", "s2"], []],
            "report": ["A", None],
            "rna": [None, "B"],
            "split": [None, None],
            "os_months": [12.5, None],
            "os_event": [1.0, None],
        }
    )
    frame.to_parquet(tmp_path / "cases.parquet")
    cases = read_cases(str(tmp_path / "cases.parquet"))
    assert cases == [
        Case(
            case_id="A",
            cancer_type="BRCA",
            slides=("s1", "s2"),
            report="A",
            os_months=12.5,
            os_event=1,
        ),
        Case(case_id="B", cancer_type="mine", rna="B"),
    ]
    write_cases(str(tmp_path / "cases.csv"), cases)
    again = pd.read_csv(tmp_path / "cases.csv", dtype=str)
    assert list(again.columns) == [column.name for column in CASE_COLUMNS]
    assert again["slides"].tolist()[0] == "s1;s2"
    assert pd.isna(again["slides"].tolist()[1])
    assert again["os_event"].tolist()[0] == "1"


@pytest.mark.parametrize(
    ("table", "found"),
    [
        (f"{HEADER}\nA,BRCA,,,,\nA,BRCA,,,,\n", ["row 2", "column case_id", "row 1 has it"]),
        (f"{HEADER}\nA,,,,,\n", ["row 1", "column cancer_type"]),
        (f"{HEADER}\nA,X,s;t;s,,,\n", ["row 1", "column slides", "slide s once"]),
        (f"{HEADER}\nA,X,s,,,\nB,X,t;s,,,\n", ["row 2", "column slides", "case A, has s too"]),
        (f"{HEADER},os_months,os_event\nA,X,,,,,5,\n", ["row 1", "column os_event"]),
        (f"{HEADER},os_months,os_event\nA,X,,,,,,1\n", ["row 1", "column os_months"]),
        (f"{HEADER},os_months,os_event\nA,X,,,,,-5,1\n", ["row 1", "column os_months", "-5.0"]),
        (f"{HEADER},os_months,os_event\nA,X,,,,,5,2\n", ["row 1", "column os_event", "0/1"]),
        ("case_id,cancer_type,slides,report,rna\nA,X,,,\n", ["column split"]),
    ],
)
def test_faults_are_named(tmp_path: Path, table: str, found: list[str]) -> None:
    """Each crafted fault is refused where it is."""
    path = tmp_path / "cases.csv"
    path.write_text(table)
    with pytest.raises(TableError) as caught:
        read_cases(str(path))
    assert [part for part in found if part not in str(caught.value)] == []


def test_a_caller_may_take_shared_slides(tmp_path: Path) -> None:
    """Who reports them itself gets both cases."""
    path = tmp_path / "cases.csv"
    path.write_text(f"{HEADER}\nA,X,s,,,\nB,X,s,,,\n")
    cases = read_cases(str(path), allow_shared_slides=True)
    assert [case.slides for case in cases] == [("s",), ("s",)]


def test_a_slide_id_that_would_be_cut_is_not_written(tmp_path: Path) -> None:
    """A semicolon in an id would make two slides of one."""
    case = Case(case_id="A", cancer_type="X", slides=("s;t",))
    with pytest.raises(AssertionError, match="s;t"):
        write_cases(str(tmp_path / "cases.csv"), [case])
