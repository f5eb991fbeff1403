"""Units and logarithms: known or stated, then checked against the numbers, never guessed.

A logarithm of x + 1 of anything a sequencer counts stays below 41 (base 2) or 28 (natural), and a
sample of more than a few genes on the linear scale always has one above 50.
"""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from mstar.data.rna.config import Transform, Unit
from mstar.errors import TableError

LOGGED_MAX = 50.0
TPM_TOTAL = 1e6
_CLEARLY_LINEAR = 1_000.0  # a case of few genes may be low among others that are not high
_TPM_ROUNDING = 1e-3
_TPM_SHARE = 0.1
_TINY = 1e-6  # what undoing a logarithm of rounded digits leaves below zero

_KNOWN_UNITS: tuple[tuple[str, Unit], ...] = (  # the first that is found in the name decides
    (r"tpm", "tpm"),
    (r"fpkm|rpkm", "fpkm"),
    (r"norm(alized)?_count|hiseqv2", "rsem"),
    (r"expected_count|htseq|(?<![a-z])counts?(?![a-z])", "counts"),
    (r"rsem", "rsem"),
)


def resolve_unit(uri: str, stated: Unit, hint: str) -> Unit:
    """The unit of a table: as stated, else as its second header or its name says.

    Raises:
        TableError: nothing says it.
    """
    if stated != "unstated":
        return stated
    found = named_unit(hint) or named_unit(uri.rpartition("/")[2])
    if found is None:
        raise TableError(
            f"{uri}: expected the unit in the name (rsem, tpm, fpkm, counts) or stated, got "
            "neither. State the unit: rsem, tpm, fpkm or counts."
        )
    return found


def named_unit(name: str) -> Unit | None:
    """The unit that a name speaks of, None when it does not."""
    for pattern, unit in _KNOWN_UNITS:
        if re.search(pattern, name.lower()):
            return unit
    return None


def to_linear(
    values: Float64[np.ndarray, "case gene"], transform: Transform
) -> Float64[np.ndarray, "case gene"]:
    """The logarithm undone; values are checked to be below LOGGED_MAX before."""
    if transform in ("unstated", "none"):
        return values
    if transform == "log2p1":
        linear = np.exp2(values) - 1.0
    elif transform == "log10p1":
        linear = np.power(10.0, np.minimum(values, 300.0)) - 1.0
    elif transform == "lnp1":
        linear = np.expm1(values)
    else:
        assert transform == "log2p0.001"
        linear = np.exp2(values) - 0.001
    return np.where((linear < 0) & (linear > -_TINY), 0.0, linear)


def check_scale(
    uri: str,
    cases: Sequence[str],
    maxima: Float64[np.ndarray, " case"],
    transform: Transform,
) -> None:
    """Refuses numbers that look logged while nothing was stated.

    maxima: per case, the largest number as the table has it.

    Raises:
        TableError: all, or some cases, look logged.
    """
    if transform != "unstated" or not len(maxima):
        return
    highest = float(maxima.max())
    if highest <= 0:  # no expression at all: such cases are counted, not refused
        return
    if highest <= LOGGED_MAX:
        raise TableError(
            f"{uri}: expected linear values, got none above {highest:g}: they look like "
            "logarithms. State the transform: log2p1 (as UCSC Xena), lnp1, log10p1, log2p0.001 or "
            "none."
        )
    logged = np.flatnonzero((maxima <= LOGGED_MAX) & (maxima > 0))
    if len(logged) and np.median(maxima[maxima > LOGGED_MAX]) > _CLEARLY_LINEAR:
        first = int(logged[0])
        raise TableError(
            f"{uri}: {len(logged):,} cases, the first {cases[first]}, have no value above "
            f"{maxima[first]:g} while others reach {highest:g}: expected one scale, got logarithms "
            "among linear values. Separate them, or state the transform none."
        )


def check_unit(
    uri: str, cases: Sequence[str], totals: Float64[np.ndarray, " case"], unit: Unit
) -> None:
    """Refuses totals that the unit cannot have: TPM sum to a million per case, others do not.

    totals: per case, the linear sum of all genes of the table.

    Raises:
        TableError: the unit is another one, or two are mixed.
    """
    if unit == "tpm":
        above = np.flatnonzero(totals > TPM_TOTAL * 1.01)
        if len(above):
            first = int(above[0])
            raise TableError(
                f"{uri}: expected TPM, which sum to 1,000,000 per case, got {totals[first]:,.0f} "
                f"for {cases[first]} and such sums in {len(above):,} of {len(totals):,} cases. "
                "State the unit that they have, or separate the cases."
            )
        return
    exact = np.flatnonzero(np.abs(totals / TPM_TOTAL - 1.0) < _TPM_ROUNDING)
    if len(exact) >= 2 and len(exact) > _TPM_SHARE * len(totals):
        raise TableError(
            f"{uri}: expected {unit}, got {len(exact):,} of {len(totals):,} cases that sum to "
            f"1,000,000 as TPM do, the first {cases[int(exact[0])]}. State the unit tpm, or "
            "separate the cases."
        )
