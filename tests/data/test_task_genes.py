"""Gene expression of a task's samples: stores and case files, what is missing, what is counted."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mstar.data.label_tables import LabelTable, Sample
from mstar.data.rna.case_files import read_case_files
from mstar.data.rna.store import ExpressionStore
from mstar.data.task_genes import NO_RNA, GeneReader, GeneSettings
from mstar.errors import CohortError, TableError
from support.rna_tables import build, linear_frame, write_tsv

VALUES = {"c1": {"A": 1.0, "B": 2.0}, "c2": {"B": 4.0, "C": 5.0}, "c3": {"A": 7.0, "C": 9.0}}


def case_files(folder: Path, values: dict[str, dict[str, float]] | None = None) -> str:
    folder.mkdir(exist_ok=True)
    for case, genes in (values or VALUES).items():
        lines = [f"{gene},{value},{at}" for at, (gene, value) in enumerate(genes.items())]
        (folder / f"{case}.csv").write_text("\n".join(["Gene,Value,Index", *lines]) + "\n")
    return str(folder)


def samples(*cases: str, rna: dict[str, str] | None = None) -> list[Sample]:
    return [
        Sample(
            case_id=case,
            slides=(f"{case}-1",),
            time_months=1.0,
            event=True,
            rna=(rna or {}).get(case),
            row=row,
            patient=case,
        )
        for row, case in enumerate(cases, 1)
    ]


def label_table(rows: list[Sample]) -> LabelTable:
    return LabelTable(uri="labels/t.csv", task_id="t", dialect="mstar", samples=tuple(rows))


def reader(folder: Path, **fields: object) -> GeneReader:
    return GeneReader(GeneSettings(source=case_files(folder / "rna"), **fields))  # type: ignore[arg-type]


def test_case_files_have_one_vocabulary_and_gaps(tmp_path: Path) -> None:
    genes = reader(tmp_path).of(samples("c3", "c1"))
    assert genes.source.genes == ("A", "B", "C")
    expected = np.array([[7, np.nan, 9], [1, 2, np.nan]], np.float32)
    np.testing.assert_array_equal(genes.values(), expected)
    assert (genes.facts["values_missing"], genes.facts["cases_missing_some"]) == (2, 2)


def test_the_vocabulary_does_not_depend_on_the_first_file(tmp_path: Path) -> None:
    """The published code takes the genes of the first case it can read."""
    turned = {case: dict(reversed(genes.items())) for case, genes in reversed(VALUES.items())}
    first = read_case_files(case_files(tmp_path / "a"))
    second = read_case_files(case_files(tmp_path / "b", turned))
    assert first.genes == second.genes
    assert first.digest == second.digest
    np.testing.assert_array_equal(first.rows(["c1", "c2"]), second.rows(["c1", "c2"]))


def test_genes_that_a_case_lacks_by_each_policy(tmp_path: Path) -> None:
    rows = samples("c1", "c2")
    zero = reader(tmp_path, missing_genes="zero").of(rows)
    assert zero.values().tolist() == [[1, 2, 0], [0, 4, 5]]
    assert zero.digest != reader(tmp_path).of(rows).digest
    with pytest.raises(CohortError, match=r"c1.csv: expected a value of gene C.*2 of 2 cases"):
        reader(tmp_path, missing_genes="error").of(rows)


def test_cases_without_expression_are_counted_or_refused(tmp_path: Path) -> None:
    rows = samples("c1", "c9", "c2")
    kept, dropped = reader(tmp_path).with_genes(label_table(rows), rows)
    assert [sample.case_id for sample in kept] == ["c1", "c2"]
    assert dropped == {NO_RNA: 1}
    with pytest.raises(CohortError, match=r"row 2, case c9.*1 of 3 samples"):
        reader(tmp_path, missing_rna="error").with_genes(label_table(rows), rows)
    with pytest.raises(CohortError, match="1 of 1 samples"):
        reader(tmp_path).with_genes(label_table(rows[1:2]), rows[1:2])


def test_a_label_table_may_name_the_file(tmp_path: Path) -> None:
    rows = samples("p1", "p2", rna={"p1": "c3.csv", "p2": "c1"})
    genes = reader(tmp_path).of(rows)
    assert genes.keys == ("c3", "c1")


def test_linear_values_become_logarithms_and_are_not_mistaken(tmp_path: Path) -> None:
    folder = case_files(tmp_path / "rna", {"c1": {"A": 9.0, "B": 3000.0}})
    with pytest.raises(TableError, match="--gene-scale linear"):
        read_case_files(folder)
    found = read_case_files(folder, "linear").rows(["c1"])
    np.testing.assert_allclose(found, np.log1p([[9.0, 3000.0]]), rtol=1e-6)
    below = case_files(tmp_path / "below", {"c1": {"A": -1.0}})
    with pytest.raises(TableError, match="--gene-scale log"):
        read_case_files(below, "linear")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Gene,Value\nA,1\nB,2\nA,3\n", "column Gene"),
        ("Gene,Value\nA,high\n", "column Value"),
        ("Symbol,Value\nA,1\n", "expected a column Gene"),
    ],
)
def test_a_case_file_that_is_wrong_is_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "c1.csv").write_text(text)
    with pytest.raises(TableError, match=told) as caught:
        read_case_files(str(tmp_path))
    assert "c1.csv" in str(caught.value)


def test_a_folder_without_expression_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="expected an expression store"):
        GeneReader(GeneSettings(source=str(tmp_path))).of(samples("c1"))


def test_a_store_is_read_by_case_and_travels_as_its_address(tmp_path: Path) -> None:
    frame = linear_frame(6)
    table = pd.DataFrame(frame).reset_index(names="Hugo_Symbol")
    store, _ = build(write_tsv(tmp_path / "rna.tsv", table), tmp_path / "expression")
    (tmp_path / "signatures.csv").write_text("one,two\nTP53,MYC\nEGFR,PTEN\nNOSUCH,\n")
    settings = GeneSettings(
        source=str(tmp_path / "expression"), signatures=str(tmp_path / "signatures.csv")
    )
    wanted = list(store.case_ids)[::-1][:4]
    genes = GeneReader(settings).of(samples(*wanted))
    assert isinstance(genes.source, ExpressionStore)
    np.testing.assert_array_equal(genes.values(), store.rows(wanted))
    names = [[store.genes[at] for at in own] for own in genes.columns]
    assert names == [["TP53", "EGFR"], ["MYC", "PTEN"]]
    assert genes.facts["groups"] == {"one": [2, 3], "two": [2, 2]}
    assert genes.facts["genes_in_no_group"] == len(store.genes) - 4
    again = pickle.loads(pickle.dumps(genes))
    assert again.digest == genes.digest
    np.testing.assert_array_equal(again.values(), genes.values())


def test_cases_without_any_expression_count_as_missing(tmp_path: Path) -> None:
    frame = linear_frame(5)
    frame.iloc[:, 2] = 0.0
    table = frame.reset_index(names="Hugo_Symbol")
    store, _ = build(write_tsv(tmp_path / "rna.tsv", table), tmp_path / "expression")
    (empty,) = store.zero_cases
    rows = samples(*store.case_ids)
    found = GeneReader(GeneSettings(source=str(tmp_path / "expression")))
    kept, dropped = found.with_genes(label_table(rows), rows)
    assert empty not in [sample.case_id for sample in kept]
    assert dropped == {NO_RNA: 1}
