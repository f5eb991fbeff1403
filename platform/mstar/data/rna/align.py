"""Expression rows in the gene order of another vocabulary, such as a trained gene encoder's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32

from mstar.errors import CohortError


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignmentCounts:
    """Genes of the vocabulary found, of the vocabulary missing, and of the values left out."""

    num_found: int
    num_filled: int
    num_left_out: int


def align(
    values: Float32[np.ndarray, "case gene"],
    genes: Sequence[str],
    vocabulary: Sequence[str],
    fill: Literal["zero", "mean", "error"] = "zero",
) -> tuple[Float32[np.ndarray, "case wanted"], AlignmentCounts]:
    """The values by the vocabulary's genes, in its order; others are left out.

    fill: what stands for a gene that is not there: zero, or the mean of the case's values of all
    the vocabulary's genes that are.

    Raises:
        CohortError: a gene is missing and fill is `error`, or none is there.
    """
    assert values.shape[1] == len(genes)
    places = {gene: index for index, gene in enumerate(genes)}
    source = np.array([places.get(gene, -1) for gene in vocabulary], dtype=np.int64)
    found = source >= 0
    absent = [gene for gene, is_found in zip(vocabulary, found, strict=True) if not is_found]
    if not found.any() or (absent and fill == "error"):
        raise CohortError(
            f"expression: expected the vocabulary's {len(vocabulary):,} genes, {len(absent):,} are "
            f"missing, the first {absent[0] if absent else '(it is empty)'}. Preprocess the RNA "
            "with that vocabulary, or fill with zero or mean."
        )
    aligned = values[:, source]
    means = values[:, source[found]].mean(axis=1, dtype=np.float64).astype(np.float32)
    aligned[:, ~found] = means[:, None] if fill == "mean" else np.float32(0)
    num_found = int(found.sum())
    counts = AlignmentCounts(
        num_found=num_found, num_filled=len(absent), num_left_out=len(genes) - num_found
    )
    return aligned, counts


def zero_rows(values: Float32[np.ndarray, "case gene"]) -> Bool[np.ndarray, " case"]:
    """Which rows have no expression at all."""
    return ~np.asarray(values.any(axis=1))
