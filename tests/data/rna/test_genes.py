"""Gene ids become one name; rows that share it are joined by the rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mstar.data.rna.genes import (
    NOT_A_GENE,
    UNNAMED,
    GeneNamer,
    is_date_like,
    merge_rows,
    plan_genes,
    read_gene_map,
)
from mstar.errors import TableError
from support.rna_tables import RSEM, build


@pytest.mark.parametrize(
    ("written", "entrez", "name"),
    [
        ("TP53", "7157", "TP53"),
        (" TP53 ", "", "TP53"),
        ("TP53|7157", "", "TP53"),
        ("?|100130426", "", "entrez:100130426"),
        ("", "57714", "entrez:57714"),
        ("NA", "57714.0", "entrez:57714"),
        ("", "", UNNAMED),
        ("?", "NA", UNNAMED),
        ("ENSG00000141510.18", "", "ENSG00000141510"),
        ("ENSG00000002586.18_PAR_Y", "", "ENSG00000002586"),
        ("ENSGR0000002586.12", "", "ENSG00000002586"),
        ("ENSMUSG00000059552.4", "", "ENSMUSG00000059552"),
        ("C1orf112", "", "C1orf112"),
        ("HLA-A", "3105", "HLA-A"),
        ("RP11-34P13.7", "", "RP11-34P13.7"),
        ("N_unmapped", "", NOT_A_GENE),
        ("__alignment_not_unique", "", NOT_A_GENE),
    ],
)
def test_ids_become_one_name(written: str, entrez: str, name: str) -> None:
    assert GeneNamer(known={}).name(written, entrez) == name


def test_a_gene_map_knows_ids_with_and_without_version(tmp_path: Path) -> None:
    (tmp_path / "map.tsv").write_text("id\tgene\nENSG00000141510.11\tTP53\n1956\tEGFR\n\tX\n")
    namer = GeneNamer(known=read_gene_map(str(tmp_path / "map.tsv")))
    assert namer.name("ENSG00000141510.18") == "TP53"
    assert namer.name("ENSG00000141510") == "TP53"
    assert namer.name("?|1956") == namer.name("", "1956") == namer.name("1956") == "EGFR"
    assert namer.name("ENSG00000000003.15") == "ENSG00000000003"
    (tmp_path / "bad.tsv").write_text("ident\tname\n1\t2\n")
    with pytest.raises(TableError, match="expected a column id"):
        read_gene_map(str(tmp_path / "bad.tsv"))


def test_names_that_a_spreadsheet_changed_are_noted(tmp_path: Path) -> None:
    assert is_date_like("1-Mar")
    assert not is_date_like("MARCHF1")
    (tmp_path / "t.tsv").write_text("Gene\tTCGA-A\n1-Mar\t99\n10-Sep\t1\nTP53\t2\n")
    _, summary = build(str(tmp_path / "t.tsv"), tmp_path / "o", RSEM)
    assert any(note.startswith("2 gene names look like dates") for note in summary.notes)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("sum", 6.0), ("mean", 3.0), ("max", 5.0), ("first", 1.0)],
)
def test_rows_of_one_gene_are_joined_by_the_rule(rule: str, expected: float) -> None:
    plan = plan_genes(["A", "B", "A"], ["A", "absent", "B"])
    values = np.array([[1, 4, 5]], dtype=np.float32)
    merged = merge_rows(values, plan, rule)  # type: ignore[arg-type]
    assert merged[0].tolist() == [expected, 0.0, 4.0]
    assert plan.absent.tolist() == [1]
