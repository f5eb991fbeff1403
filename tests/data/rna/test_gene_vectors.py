"""Gene2Vec files are read with or without their header line; broken lines are named."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from mstar.data.rna.gene_vectors import read_gene_list, read_gene_vectors, select_vectors
from mstar.errors import TableError


def gene2vec_text(num_genes: int = 5, dim: int = 200) -> tuple[str, np.ndarray]:
    vectors = np.random.default_rng(0).normal(size=(num_genes, dim)).astype(np.float32)
    lines = [
        f"G{i}\t" + " ".join(map(repr, map(float, row))) + " " for i, row in enumerate(vectors)
    ]
    return "\n".join(lines) + "\n", vectors


@pytest.mark.parametrize("header", ["", "5 200\n", "\ufeff"])
@pytest.mark.parametrize("name", ["v.txt", "v.txt.gz"])
def test_names_and_vectors_come_in_the_order_of_the_file(
    tmp_path: Path, header: str, name: str
) -> None:
    text, vectors = gene2vec_text()
    data = (header + text).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    names, found = read_gene_vectors(str(tmp_path / name))
    assert names == ("G0", "G1", "G2", "G3", "G4")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, vectors)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A 1 2\nB 1\n", "row 2, column vector of B: expected 2 numbers, got '1 numbers'"),
        ("A 1 2\nB 1 x\n", "row 2, column vector of B: expected numbers, got 'x'"),
        ("A 1 2\nB 1 nan\n", "row 2, column vector of B: expected finite numbers"),
        ("A 1 2\nA 1 2\n", "gene A comes twice"),
        ("A\n", "row 1, column vector of A: expected numbers"),
        ("", "got no lines"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "v.txt").write_text(text)
    with pytest.raises(TableError, match=message):
        read_gene_vectors(str(tmp_path / "v.txt"))


def test_other_encodings_arrays_and_absent_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_bytes("A 1\nB\xfc 2\n".encode("latin-1"))
    with pytest.raises(TableError, match="row 2, column gene: expected UTF-8"):
        read_gene_vectors(str(tmp_path / "v.txt"))
    with pytest.raises(TableError, match="an array, which has no gene names"):
        read_gene_vectors("gene2vec_16906.npy")
    with pytest.raises(TableError, match="no such table"):
        read_gene_vectors(str(tmp_path / "none.txt"))


def test_a_gene_list_has_one_gene_a_line(tmp_path: Path) -> None:
    (tmp_path / "g.txt").write_text("# comment\nTP53\r\n\nEGFR\n")
    assert read_gene_list(str(tmp_path / "g.txt")) == ("TP53", "EGFR")
    for text, message in (("A B\n", "row 1.*one gene"), ("A\nA\n", "twice"), ("#\n", "no lines")):
        (tmp_path / "g.txt").write_text(text)
        with pytest.raises(TableError, match=message):
            read_gene_list(str(tmp_path / "g.txt"))


def test_vectors_are_selected_by_gene() -> None:
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert select_vectors(["a", "b", "c"], vectors, ["c", "a"]).tolist() == [[4, 5], [0, 1]]
    with pytest.raises(TableError, match="1 genes have no vector, the first x"):
        select_vectors(["a", "b", "c"], vectors, ["a", "x"])
