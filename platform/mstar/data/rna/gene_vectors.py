"""Gene2Vec files and gene lists: the vocabulary, and vectors that stay frozen.

The format is one gene a line, its name and its numbers, with or without the word2vec header line
(`24447 200`). Names are separated from numbers by a tab or a space; other separators are not taken.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float32

from mstar.data import tables
from mstar.errors import TableError

PAPER_GENES = 17_425
PAPER_DIM = 200


def read_gene_vectors(uri: str) -> tuple[tuple[str, ...], Float32[np.ndarray, "gene dim"]]:
    """Names and vectors in the order of the file.

    Raises:
        TableError: a line is no gene with its numbers, a gene comes twice, or lengths differ.
    """
    if uri.endswith((".npy", ".npz")):
        raise TableError(
            f"{uri}: expected text (a gene and its numbers a line), got an array, which has no "
            "gene names. Use the text file of Gene2Vec."
        )
    names: list[str] = []
    vectors: list[Float32[np.ndarray, " dim"]] = []
    for row, line in _lines(uri):
        name, *cells = line.split()
        if row == 0 and len(cells) == 1 and name.isdigit():
            continue  # the word2vec header
        vectors.append(_vector(uri, row, name, cells, len(vectors[0]) if vectors else 0))
        names.append(name)
    if not names:
        raise TableError(f"{uri}: expected a gene and its numbers a line, got no lines.")
    _refuse_repeated(uri, names)
    return tuple(names), np.stack(vectors)


def read_gene_list(uri: str) -> tuple[str, ...]:
    """The genes of a list, one a line, in its order; `#` starts a comment line.

    Raises:
        TableError: it is empty, a gene comes twice, or a line holds more than a name.
    """
    names = []
    for row, line in _lines(uri):
        if line.startswith("#"):
            continue
        if len(line.split()) != 1:
            raise tables.bad_cell(uri, row, "gene", "one gene", line, "Give one gene a line.")
        names.append(line)
    if not names:
        raise TableError(f"{uri}: expected one gene a line, got no lines.")
    _refuse_repeated(uri, names)
    return tuple(names)


def select_vectors(
    names: Sequence[str], vectors: Float32[np.ndarray, "gene dim"], genes: Sequence[str]
) -> Float32[np.ndarray, "wanted dim"]:
    """The vectors of some genes, in their order.

    Raises:
        TableError: a gene has none.
    """
    places = {name: index for index, name in enumerate(names)}
    absent = [gene for gene in genes if gene not in places]
    if absent:
        raise TableError(
            f"{len(absent):,} genes have no vector, the first {absent[0]}. Take the vocabulary "
            "from the vectors, or let them be learned."
        )
    return vectors[[places[gene] for gene in genes]]


def _lines(uri: str) -> Iterator[tuple[int, str]]:
    with tables.open_text(uri) as file:
        for row, line in enumerate(file):
            try:
                text = line.decode("utf-8-sig" if row == 0 else "utf-8").strip()
            except UnicodeDecodeError:
                raise tables.bad_cell(
                    uri, row, "gene", "UTF-8", line[:20], "Save the file as UTF-8 text."
                ) from None
            if text:
                yield row, text


def _vector(
    uri: str, row: int, name: str, cells: Sequence[str], dim: int
) -> Float32[np.ndarray, " dim"]:
    if not cells or (dim and len(cells) != dim):
        expected = f"{dim} numbers" if dim else "numbers"
        raise tables.bad_cell(
            uri, row, f"vector of {name}", expected, f"{len(cells)} numbers", "Correct the line."
        )
    try:
        vector = np.array(cells, dtype=np.float32)
    except ValueError:
        wrong = next(cell for cell in cells if not _is_number(cell))
        raise tables.bad_cell(
            uri, row, f"vector of {name}", "numbers", wrong, "Correct the line."
        ) from None
    if not np.isfinite(vector).all():
        raise tables.bad_cell(
            uri, row, f"vector of {name}", "finite numbers", "NaN or infinity", "Correct the line."
        )
    return vector


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _refuse_repeated(uri: str, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise TableError(f"{uri}: gene {name} comes twice. Keep one of its lines.")
        seen.add(name)
