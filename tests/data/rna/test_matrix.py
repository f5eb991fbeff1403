"""Tables as sites deliver them are read; malformed ones are refused by row and column."""

from __future__ import annotations

import gzip
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mstar.data.rna import text_matrix
from mstar.data.rna.config import ExpressionConfig
from mstar.data.rna.matrix import open_matrix, sample_names
from mstar.errors import TableError
from support.rna_tables import RSEM, as_frame, build, cbioportal, linear_frame, reference, write_tsv


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def read(source: str, tmp_path: Path, **changes: object) -> pd.DataFrame:
    """Linear values, cases × genes, with RSEM stated."""
    config = replace(RSEM, transform="none", **changes)  # type: ignore[arg-type]
    return np.expm1(as_frame(build(source, tmp_path / "out", config)[0])).round(3)


def test_firehose_tables_have_a_second_header_and_piped_genes(tmp_path: Path) -> None:
    source = write(
        tmp_path / "BRCA.rnaseqv2.data.txt",
        "Hybridization REF\tTCGA-A1-01\tTCGA-B2-01\n"
        "gene_id\tnormalized_count\tnormalized_count\n"
        "?|100130426\t1\t2\n"
        "SLC35E2|728661\t100\t200\n"
        "SLC35E2|9906\t10\t20\n"
        "TP53|7157\t3000\t4000\n",
    )
    assert sample_names(source, RSEM) == ["TCGA-A1-01", "TCGA-B2-01"]
    store, summary = build(source, tmp_path / "o", ExpressionConfig())
    assert store.genes == ("SLC35E2", "TP53", "entrez:100130426")
    np.testing.assert_allclose(np.expm1(store.row("TCGA-B2-01")), [220, 4000, 2], rtol=1e-5)
    assert (summary.unit, summary.num_repeated_rows) == ("rsem", 1)
    bad = write(tmp_path / "b.txt", Path(source).read_text().replace("4000", "4,0"))
    with pytest.raises(TableError, match=r"row 5, column TCGA-B2-01 \(gene TP53\|7157\): .*'4,0'"):
        build(bad, tmp_path / "o")


def test_xena_tables_are_logged_and_named_sample(tmp_path: Path) -> None:
    frame = linear_frame()
    logged = np.log2(frame + 1).round(9).rename_axis("sample").reset_index()
    source = write_tsv(tmp_path / "HiSeqV2.gz", logged)
    assert sample_names(source, ExpressionConfig()) == list(frame.columns)
    store, summary = build(source, tmp_path / "o", ExpressionConfig(transform="log2p1"))
    expected = reference(frame)
    np.testing.assert_allclose(as_frame(store), expected, rtol=1e-5, atol=1e-6)
    assert (summary.unit, summary.transform) == ("rsem", "log2p1")


def test_ensembl_versions_and_the_y_copy_become_one_gene(tmp_path: Path) -> None:
    source = write(
        tmp_path / "t.tsv",
        "Ensembl_ID\tTCGA-A\tTCGA-B\nENSG00000002586.18\t100\t50\n"
        "ENSG00000002586.18_PAR_Y\t1\t0\nENSGR0000002586.2\t10\t0\n__no_feature\t9\t9\n",
    )
    found = read(source, tmp_path)
    assert found.columns.tolist() == ["ENSG00000002586"]
    assert found.iloc[:, 0].round().tolist() == [111.0, 50.0]


def test_annotation_columns_and_columns_to_ignore_are_left_out(tmp_path: Path) -> None:
    table = cbioportal(linear_frame())
    table.insert(2, "Cytoband", "1p36")
    table.insert(5, "Remark", "fine, I think")
    source = write_tsv(tmp_path / "t.tsv", table)
    with pytest.raises(TableError, match=r"row 1, column Remark \(gene TP53\).*ignore_columns"):
        build(source, tmp_path / "o")
    config = replace(RSEM, ignore_columns=("Remark",))
    assert sample_names(source, config) == list(linear_frame().columns)
    found = as_frame(build(source, tmp_path / "o", config)[0])
    np.testing.assert_allclose(found, reference(linear_frame()), rtol=1e-6)


def test_the_orientation_is_told_by_ids_or_must_be_stated(tmp_path: Path) -> None:
    told = write(tmp_path / "a.tsv", "id\tTP53\tEGFR\nx\t100\t2\ny\t300\t4\n")
    assert sample_names(told, RSEM) == ["x", "y"]
    piped = write(tmp_path / "b.tsv", "id\tx\ty\nTP53|7157\t100\t2\n")
    assert sample_names(piped, RSEM) == ["x", "y"]
    barcodes = write(tmp_path / "c.tsv", "\tg1\tg2\nTCGA-AA-0001\t100\t2\n")
    assert sample_names(barcodes, RSEM) == ["TCGA-AA-0001"]
    neither = write(tmp_path / "d.tsv", "id\tone\ttwo\nx\t100\t2\n")
    with pytest.raises(TableError, match="State the orientation: genes-by-cases"):
        sample_names(neither, RSEM)
    stated = replace(RSEM, orientation="genes-by-cases")
    assert sample_names(neither, stated) == ["one", "two"]


HEAD = "Hugo_Symbol\tEntrez_Gene_Id\tTCGA-A\tTCGA-B\n"
ROWS = "TP53\t7157\t100\t200\nEGFR\t1956\t3\t4\n"
MALFORMED = {
    "text in a cell": (HEAD + "TP53\t1\t100\tx\n", r"row 1, column TCGA-B \(gene TP53\): .*'x'"),
    "comma as point": (HEAD + ROWS + "MYC\t2\t1,5\t1\n", r"row 3, column TCGA-A .gene MYC.*'1,5'"),
    "infinity": (HEAD + ROWS + "MYC\t2\t5\tinf\n", r"row 3, column TCGA-B .gene MYC.*inf"),
    "NaN": (HEAD + "MYC\t2\tNaN\t100\n", r"row 1, column TCGA-A .gene MYC.*an empty cell"),
    "short row": (HEAD + ROWS + "MYC\t2\t5\n", r"row 3 \(MYC\), column TCGA-B: .*4 cells, got 3"),
    "long row": (HEAD + "MYC\t2\t5\t6\t7\n", r"row 1 \(MYC\), column TCGA-B: .*4 cells, got 5"),
    "empty line": (HEAD + ROWS + "\nMYC\t2\t5\t6\n", r"row 3 is empty"),
    "same sample twice": (HEAD.replace("-B", "-A") + ROWS, r"column TCGA-A .*columns 3 and 4"),
    "column without a name": (HEAD.replace("TCGA-B", "") + ROWS, r"column 4 has no name"),
    "no gene column": ("a\tb\nx\t1\n", r"expected a gene column \(hugo_symbol.*got a, b"),
    "no rows": (HEAD, "expected rows below the header"),
    "empty": ("", "got an empty file"),
    "wrong separator": ("Hugo_Symbol TCGA-A\nTP53 1\n", "separated by tabs, commas or semi"),
    "no numbers": ("gene\tEntrez_Gene_Id\nTP53\t1\n", "columns of numbers, got only gene, Entrez"),
    "latin-1 gene": ((HEAD + ROWS + "M\xfcC\t2\t5\t6\n").encode("latin-1"), r"row 3, column Hugo_"),
    "latin-1 cell": ((HEAD + "MYC\t2\t5\t\xfc\n").encode("latin-1"), r"row 1, column TCGA-B"),
    "latin-1 header": (HEAD.replace("-A", "-\xfc").encode("latin-1"), r"header: expected UTF-8"),
    "UTF-16": ((HEAD + ROWS).encode("utf-16"), "got UTF-16"),
    "sample rows twice": ("case_id\tTP53\nA\t99\nB\t99\nA\t99\n", r"row 3, .*row 1 has it.*'A'"),
    "sample without a name": ("case_id\tTP53\nA\t99\n\t99\n", r"row 2, column case_id: .*name"),
}  # fmt: skip


@pytest.mark.parametrize("fault", MALFORMED)
def test_a_malformed_table_is_refused_by_row_and_column(tmp_path: Path, fault: str) -> None:
    text, message = MALFORMED[fault]
    source = write(tmp_path / "t.tsv", text)
    with pytest.raises(TableError, match=message) as caught:
        build(source, tmp_path / "o", replace(RSEM, transform="none"))
    assert str(caught.value).startswith(source)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "fault", ["text in a cell", "short row", "empty line", "sample rows twice"]
)
def test_rows_are_counted_over_blocks(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_matrix, "_BLOCK_BYTES", 8)
    test_a_malformed_table_is_refused_by_row_and_column(tmp_path, fault)


def test_blank_lines_at_the_end_and_unusual_numbers_are_taken(tmp_path: Path) -> None:
    text = HEAD + "TP53\t7157\t+1e2\t 200 \r\nEGFR\t1956\t.5\t4.\r\n\r\n\n"
    found = read(write(tmp_path / "t.tsv", "\ufeff" + text), tmp_path)
    np.testing.assert_allclose(found.to_numpy(), [[0.5, 100], [4, 200]], rtol=1e-5)


def test_missing_words_in_text_and_parquet_are_missing_cells(tmp_path: Path) -> None:
    text = write(tmp_path / "t.tsv", HEAD + "TP53\t7157\tNA\t200\nEGFR\t1956\t\tnull\n")
    frame = pd.DataFrame({"gene": ["TP53", "EGFR"], "A": ["NA", None], "B": ["200", "null"]})
    frame.to_parquet(tmp_path / "t.parquet")
    config = replace(RSEM, missing_cells="zero")
    for source in (text, str(tmp_path / "t.parquet")):
        store, summary = build(source, tmp_path / "o", config)
        assert summary.num_missing_cells == 3
        np.testing.assert_allclose(
            np.expm1(store.rows(store.case_ids)), [[0, 0], [0, 200]], rtol=1e-5
        )


def test_parquet_faults_are_named(tmp_path: Path) -> None:
    frame = pd.DataFrame({"gene": ["TP53", "EGFR"], "A": [100.0, -1.0], "B": ["3", "x"]})
    frame.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(TableError, match=r"row 2, column B \(gene EGFR\): .*got 'x'"):
        build(str(tmp_path / "t.parquet"), tmp_path / "o")
    frame[["gene", "A"]].to_parquet(tmp_path / "t.parquet")
    with pytest.raises(TableError, match=r"row 2, column A \(gene EGFR\): .*got -1.0"):
        build(str(tmp_path / "t.parquet"), tmp_path / "o")
    source = write(tmp_path / "broken.parquet", b"PAR1 not at all")
    with pytest.raises(TableError, match="expected Parquet"):
        build(source, tmp_path / "o")
    for name in ("none.parquet", "none.tsv"):
        with pytest.raises(TableError, match="no such table"):
            build(str(tmp_path / name), tmp_path / "o")


def test_wide_parquet_is_read_some_columns_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mstar.data.rna.parquet_matrix._CELLS_AT_ONCE", 15)
    frame = linear_frame(11)
    cbioportal(frame).to_parquet(tmp_path / "t.parquet")
    with open_matrix(str(tmp_path / "t.parquet"), RSEM) as matrix:
        assert [len(block.samples) for block in matrix.blocks] == [2] * 5 + [1]
    frame.T.rename_axis("sample_id").to_parquet(tmp_path / "c.parquet")
    for name in ("t", "c"):
        found = as_frame(build(str(tmp_path / f"{name}.parquet"), tmp_path / name)[0])
        np.testing.assert_allclose(found, reference(frame), rtol=1e-6)


def test_repeated_genes_can_be_refused_by_their_rows(tmp_path: Path) -> None:
    source = write(tmp_path / "t.tsv", HEAD + ROWS + "TP53\t1\t5\t6\n")
    with pytest.raises(TableError, match="gene TP53: row 1 and row 3 are both it"):
        build(source, tmp_path / "o", replace(RSEM, duplicate_genes="error"))


def test_a_gzip_that_was_cut_is_a_table_error(tmp_path: Path) -> None:
    whole = gzip.compress((HEAD + ROWS * 2000).encode())
    source = write(tmp_path / "t.tsv.gz", whole[: len(whole) // 2])
    with pytest.raises(TableError, match=re.escape(source)):
        build(source, tmp_path / "o")
