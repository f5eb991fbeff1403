"""Signature tables: groups of genes, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mstar.cohorts.generated.config import GenerateConfig
from mstar.cohorts.generated.gene_table import genes_of
from mstar.cohorts.generated.signatures import GROUP_OF, write_signatures
from mstar.data.rna.signatures import read_signatures
from mstar.errors import TableError


def table(folder: Path, *lines: str) -> str:
    path = folder / "signatures.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_groups_come_as_listed_whatever_their_lengths(tmp_path: Path) -> None:
    found = read_signatures(table(tmp_path, "one,two", "TP53,MYC", "RB1,", " EGFR ,NaN", ",TP53"))
    assert found.names == ("one", "two")
    assert found.genes == (("TP53", "RB1", "EGFR"), ("MYC", "TP53"))


def test_sizes_are_those_of_the_vocabulary(tmp_path: Path) -> None:
    groups = read_signatures(table(tmp_path, "one,two", "A,C", "B,D", "Z,A"))
    columns = groups.columns(("D", "A", "X", "B"))
    assert [own.tolist() for own in columns] == [[1, 3], [0, 1]]


def test_the_index_that_pandas_writes_is_no_group(tmp_path: Path) -> None:
    assert read_signatures(table(tmp_path, ",one", "0,A", "1,B")).names == ("one",)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (("one,one", "A,B"), "comes twice"),
        (("one,two", "A,B", "C,D", "A,E"), "row 3.*column one.*row 1 of the group has it.*'A'|A"),
        (("one,two", "A,", "B,"), "group two: expected genes, got none"),
    ],
)
def test_duplicate_names_and_empty_groups_are_refused(
    tmp_path: Path, lines: tuple[str, ...], told: str
) -> None:
    with pytest.raises(TableError, match=told) as caught:
        read_signatures(table(tmp_path, *lines))
    assert "signatures.csv" in str(caught.value)


def test_a_gene_twice_in_a_group_names_both_rows_and_the_way_out(tmp_path: Path) -> None:
    uri = table(tmp_path, "one,two", "A,B", "C,D", "A,B")
    with pytest.raises(TableError, match="row 3") as caught:
        read_signatures(uri)
    assert "row 1" in str(caught.value)
    assert "--repeated-genes drop" in str(caught.value)
    dropped = read_signatures(uri, "drop")
    assert dropped.genes == (("A", "C"), ("B", "D"))
    assert dropped.repeated == 2


def test_a_group_of_which_no_gene_is_measured_is_refused(tmp_path: Path) -> None:
    groups = read_signatures(table(tmp_path, "one,two", "A,X", "B,Y"))
    with pytest.raises(TableError, match="group two: none of its genes is among the 3 measured"):
        groups.columns(("A", "B", "C"))
    with pytest.raises(TableError, match="no gene of the expression is in any group") as caught:
        groups.columns(("ENSG01", "ENSG02"))
    assert "ENSG01" in str(caught.value)
    assert "A, B" in str(caught.value)


def test_a_generated_cohort_has_six_groups_of_its_own_genes(tmp_path: Path) -> None:
    config = GenerateConfig(out=str(tmp_path), num_genes=1000)
    write_signatures(str(tmp_path), config)
    found = read_signatures(str(tmp_path / "signatures.csv"))
    assert found.names == tuple(GROUP_OF.values())
    genes = genes_of(config)
    columns = found.columns([gene.symbol for gene in genes])
    assert [len(own) for own in columns] == [len(own) for own in found.genes]
    of_group = dict(zip(found.names, map(set, found.genes), strict=True))
    for gene in genes:
        homes = [name for name, own in of_group.items() if gene.symbol in own]
        if gene.factor in GROUP_OF and gene.factor:
            assert homes == [GROUP_OF[gene.factor]]
        assert len(homes) <= 1
    loose = [g for g in genes if not any(g.symbol in own for own in of_group.values())]
    assert 0.1 < len(loose) / len(genes) < 0.3
