"""Label tables: what is written reads back; what is wrong is named by row and column."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.data.labels import (
    DATA_SOURCES,
    PARTS,
    ClassLabel,
    SurvivalLabel,
    read_class_labels,
    read_survival_labels,
    write_class_labels,
    write_survival_labels,
)
from mstar.errors import TableError

NAMES = st.text("abcü 7_-,\"'", min_size=1, max_size=6).filter(lambda text: text == text.strip())
SLIDES = st.lists(st.text("ab7/", min_size=1, max_size=4), max_size=3).map(tuple)


@settings(max_examples=30, deadline=None)
@given(
    ids=st.lists(NAMES, unique=True, min_size=1, max_size=6),
    slides=SLIDES,
    label=NAMES,
    months=st.floats(0, 1e4),
    part=st.sampled_from([*PARTS, None]),
    source=st.sampled_from(DATA_SOURCES),
)
def test_tables_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    ids: list[str],
    slides: tuple[str, ...],
    label: str,
    months: float,
    part: str | None,
    source: str,
) -> None:
    uri = str(tmp_path_factory.mktemp("labels") / "t.csv")
    shared = {"slides": slides, "split": part, "data_source": source}
    classes = [ClassLabel(case_id=i, label=label, **shared) for i in ids]  # type: ignore[arg-type]
    write_class_labels(uri, classes)
    assert read_class_labels(uri) == classes
    times = [
        SurvivalLabel(case_id=i, time_months=months, event=k % 2, **shared)  # type: ignore[arg-type]
        for k, i in enumerate(ids)
    ]
    write_survival_labels(uri, times)
    assert read_survival_labels(uri) == times


def test_a_table_of_ones_own_needs_few_columns(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("case_id,slides,label\nP1,a;b,x\nP2,c,y\n")
    first, second = read_class_labels(str(path), ("x", "y"))
    assert (first.slides, first.split, first.data_source) == (("a", "b"), None, "real")
    assert second.label == "y"


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        ("P1,a,10,1,train,real\nP1,b,5,0,train,real", "row 2, column case_id"),
        ("P1,a,-1,1,train,real", "row 1, column time_months: expected 0 or more"),
        ("P1,a,soon,1,train,real", "row 1, column time_months"),
        ("P1,a,10,2,train,real", "row 1, column event: expected 0.*1"),
        ("P1,a,10,1,testing,real", "row 1, column split: expected train.*val.*test"),
        ("P1,a,10,1,test,fake", "row 1, column data_source"),
    ],
)
def test_wrong_cells_are_named(tmp_path: Path, cells: str, problem: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"case_id,slides,time_months,event,split,data_source\n{cells}\n")
    with pytest.raises(TableError, match=problem):
        read_survival_labels(str(path))


def test_a_class_that_the_task_lacks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("case_id,slides,label\nP1,a,mutated\nP2,b,Mutated\n")
    with pytest.raises(TableError, match=r"row 2, column label: expected wildtype.*mutated"):
        read_class_labels(str(path), ("wildtype", "mutated"))
