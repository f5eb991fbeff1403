"""Empty, negative and infinite cells: refused by row and column, or counted and replaced."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from mstar.data.rna.config import ExpressionConfig
from mstar.data.rna.matrix import Block, Matrix

_LOWEST_TOIL = np.log2(0.001)  # what log2(x + 0.001) makes of zero
_ROUNDING = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class CellPlaces:
    """Where the values of some samples of a block lie in the file."""

    matrix: Matrix
    block: Block
    samples: Int64[np.ndarray, " case"]  # within the block

    def refuse(
        self,
        wrong: Bool[np.ndarray, "case gene"],
        values: Float64[np.ndarray, "case gene"],
        expected: str,
        way_out: str,
    ) -> None:
        """Raises for the first wrong cell in the order of the file, if there is one."""
        if not wrong.any():
            return
        if self.matrix.layout.genes_by_cases:
            gene, case = (int(index[0]) for index in np.nonzero(wrong.T))
        else:
            case, gene = (int(index[0]) for index in np.nonzero(wrong))
        sample, block, value = int(self.samples[case]), self.block, float(values[case, gene])
        raise self.matrix.bad_cell(
            block.first_sample + sample,
            block.first_gene + gene,
            (block.samples[sample], block.genes[gene][0]),
            expected,
            None if np.isnan(value) else value,
            way_out,
        )


def check_cells(
    values: Float64[np.ndarray, "case gene"],
    stored: Bool[np.ndarray, " gene"],
    places: CellPlaces,
    config: ExpressionConfig,
    counts: Counter[str],
) -> Float64[np.ndarray, "case gene"]:
    """The values, negative ones replaced if that is the policy; empty cells stay NaN.

    stored: genes that are kept; cells of others are not looked at.

    Raises:
        TableError: a cell is infinite, or what the policy refuses.
    """
    lowest = _LOWEST_TOIL - _ROUNDING if config.transform == "log2p0.001" else 0.0
    if not values.size or (np.isfinite(values.sum()) and values.min() >= lowest):
        return values
    places.refuse(np.isinf(values) & stored, values, "a finite number", "Correct the cell.")
    missing = np.isnan(values) & stored
    if config.missing_cells == "error":
        way_out = "Fill the cell in, or state missing_cells zero or mean."
        places.refuse(missing, values, "a number", way_out)
    counts["missing_cells"] += int(missing.sum())
    negative = (values < lowest) & stored
    if config.negative_cells == "error":
        places.refuse(
            negative,
            values,
            "a number that is not negative",
            "z-scores and log ratios are no expression; batch-corrected tables have some small "
            "negative ones: state negative_cells zero.",
        )
    counts["negative_cells"] += int(negative.sum())
    return np.where(negative, lowest, values)
