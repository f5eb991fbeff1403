"""One matrix: its blocks checked, made linear, counted, and set aside on disk by case and row."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Float64, Int64

from mstar.data.rna import scale
from mstar.data.rna.cell_checks import CellPlaces, check_cells
from mstar.data.rna.config import ExpressionConfig, Unit
from mstar.data.rna.genes import NOT_A_GENE, UNNAMED, GeneNamer, is_date_like
from mstar.data.rna.matrix import Block, Matrix, open_matrix, refuse_repeated
from mstar.data.rna.scratch import Scratch
from mstar.errors import TableError

_STORED, _OUTSIDE, _DROPPED = 0, 1, 2  # kept; not in the vocabulary; no gene, or one without a name


@dataclass(slots=True, kw_only=True, eq=False)
class Collected:
    """What one matrix held of the wanted cases and genes.

    rows: gene name of each row set aside; names may repeat.
    counts: what was met, by name.
    fill: per row, what stands for an empty cell.
    """

    uri: str
    unit: Unit
    genes_by_cases: bool
    samples: list[str] = field(default_factory=list)  # all of the file
    cases: list[str] = field(default_factory=list)  # kept ones, in the order of the scratch
    rows: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    scratch: Scratch
    fill: Float32[np.ndarray, " row"] = field(default_factory=lambda: np.zeros(0, np.float32))

    def read(self, start: int, stop: int) -> Float32[np.ndarray, "case row"]:
        """Linear values of some cases, empty cells filled."""
        values = self.scratch.read(start, stop, len(self.rows))
        if self.counts["missing_cells"]:
            empty = np.isnan(values)
            values = np.where(empty, self.fill, values).astype(np.float32)
        return values


def collect(
    uri: str,
    config: ExpressionConfig,
    *,
    keep: Mapping[str, str] | None,
    namer: GeneNamer,
    vocabulary: frozenset[str] | None,
    stack: ExitStack,
) -> Collected:
    """Reads a matrix from front to end.

    keep: matrix sample → case; None keeps every sample under its own name.
    stack: closes the scratch file.

    Raises:
        TableError: the matrix is malformed, or against what is stated of it.
    """
    with open_matrix(uri, config) as matrix:
        result = Collected(
            uri=uri,
            unit=scale.resolve_unit(uri, config.unit, matrix.hint),
            genes_by_cases=matrix.layout.genes_by_cases,
            scratch=stack.enter_context(Scratch(config.scratch)),
        )
        collector = _Collector(matrix, config, result, keep, namer, vocabulary)
        for block in matrix.blocks:
            collector.take(block)
        collector.finish()
    return result


class _Collector:
    """Takes the blocks of one matrix."""

    def __init__(
        self,
        matrix: Matrix,
        config: ExpressionConfig,
        result: Collected,
        keep: Mapping[str, str] | None,
        namer: GeneNamer,
        vocabulary: frozenset[str] | None,
    ) -> None:
        self._matrix = matrix
        self._config = config
        self._result = result
        self._keep = keep
        self._namer = namer
        self._vocabulary = vocabulary
        self._kinds = np.zeros(0, dtype=np.int64)  # per gene of the file
        self._row_of: dict[str, int] = {}  # gene name -> place in the file, for repeated ones
        self._kept = np.zeros(0, dtype=np.int64)  # indices of the kept samples of the file
        self._maxima = np.zeros(0)  # per kept case, as the file has it
        self._totals = np.zeros(0)  # per kept case, linear
        self._sums = np.zeros(0)  # per row, over kept cases, linear
        self._present = np.zeros(0)

    def take(self, block: Block) -> None:
        """Checks a block and sets aside what is wanted of it."""
        first_row = self._add_genes(block)
        first_case = self._add_samples(block)
        stop = block.first_sample + len(block.samples)
        inside = (self._kept >= block.first_sample) & (self._kept < stop)
        samples = self._kept[inside] - block.first_sample
        kinds = self._kinds[block.first_gene : block.first_gene + len(block.genes)]
        values = block.values if len(samples) == len(block.samples) else block.values[samples]
        values = check_cells(
            values,
            kinds == _STORED,
            CellPlaces(self._matrix, block, samples),
            self._config,
            self._result.counts,
        )
        self._note_scale(first_case, values, kinds)
        linear = scale.to_linear(values, self._config.transform)
        self._totals[first_case : first_case + len(samples)] += np.nansum(
            linear[:, kinds != _DROPPED], axis=1
        )
        linear = linear[:, kinds == _STORED]
        self._note_rows(first_row, linear)
        self._result.scratch.write(first_case, first_row, linear.astype(np.float32))

    def finish(self) -> None:
        """What can only be said when everything has been read."""
        result, config = self._result, self._config
        if not result.samples or not len(self._kinds):
            raise TableError(f"{result.uri}: expected rows below the header, got none.")
        scale.check_scale(result.uri, result.cases, self._maxima, config.transform)
        scale.check_unit(result.uri, result.cases, self._totals, result.unit)
        means = np.divide(
            self._sums, self._present, out=np.zeros_like(self._sums), where=self._present > 0
        )
        fill = means if config.missing_cells == "mean" else np.zeros_like(means)
        result.fill = fill.astype(np.float32)

    def _add_genes(self, block: Block) -> int:
        """Names the genes of a block, if they are new; where its rows begin in the scratch."""
        if block.first_gene < len(self._kinds):
            return int((self._kinds[: block.first_gene] == _STORED).sum())
        assert block.first_gene == len(self._kinds)
        first, kinds = len(self._result.rows), np.zeros(len(block.genes), dtype=np.int64)
        for index, (written, entrez) in enumerate(block.genes):
            kinds[index] = self._add_gene(written, entrez, block.first_gene + index)
        added = len(self._result.rows) - first
        self._kinds = np.concatenate([self._kinds, kinds])
        self._sums = np.concatenate([self._sums, np.zeros(added)])
        self._present = np.concatenate([self._present, np.zeros(added)])
        return first

    def _add_gene(self, written: str, entrez: str, place: int) -> int:
        name, counts = self._namer.name(written, entrez), self._result.counts
        counts["source_rows"] += 1
        if name in (NOT_A_GENE, UNNAMED):
            counts["counter_rows" if name == NOT_A_GENE else "unnamed_rows"] += 1
            return _DROPPED
        counts["date_like_names"] += is_date_like(name)
        if self._vocabulary is not None and name not in self._vocabulary:
            counts["rows_outside_vocabulary"] += 1
            return _OUTSIDE
        if name in self._row_of:
            counts["repeated_rows"] += 1
            self._refuse_repeat(name, place)
        self._row_of.setdefault(name, place)
        self._result.rows.append(name)
        return _STORED

    def _refuse_repeat(self, name: str, place: int) -> None:
        if self._config.duplicate_genes == "error":
            first, offset = self._row_of[name], self._matrix.first_row
            what = "row" if self._result.genes_by_cases else "column of numbers"
            raise TableError(
                f"{self._result.uri}: gene {name}: {what} {offset + first + 1:,} and {what} "
                f"{offset + place + 1:,} are both it. Remove one, or state another "
                "rule for duplicate_genes."
            )

    def _add_samples(self, block: Block) -> int:
        """Notes new samples; where the block's kept cases begin in the scratch."""
        samples = self._result.samples
        if block.first_sample == len(samples):
            kept = [i for i, n in enumerate(block.samples) if self._keep is None or n in self._keep]
            samples += block.samples
            names = [block.samples[i] for i in kept]
            self._result.cases += [n if self._keep is None else self._keep[n] for n in names]
            self._kept = np.concatenate(
                [self._kept, np.array(kept, dtype=np.int64) + block.first_sample]
            )
            self._maxima = np.concatenate([self._maxima, np.full(len(kept), -np.inf)])
            self._totals = np.concatenate([self._totals, np.zeros(len(kept))])
            if not self._result.genes_by_cases:
                refuse_repeated(self._result.uri, samples)
        return int((self._kept < block.first_sample).sum())

    def _note_scale(
        self,
        first_case: int,
        values: Float64[np.ndarray, "case gene"],
        kinds: Int64[np.ndarray, " gene"],
    ) -> None:
        """Largest number per case; a stated logarithm cannot be as large as some are."""
        real = values[:, kinds != _DROPPED]
        if not real.size:
            return
        highest = np.fmax.reduce(real, axis=1)
        part = self._maxima[first_case : first_case + len(highest)]
        np.fmax(part, highest, out=part)
        stated = self._config.transform
        if stated not in ("unstated", "none") and np.nanmax(highest) > scale.LOGGED_MAX:
            case = int(np.nanargmax(highest))
            name = self._result.cases[first_case + case]
            raise TableError(
                f"{self._result.uri}: case {name}: expected {stated} values, none above "
                f"{scale.LOGGED_MAX:g}, got {highest[case]:g}. State the transform that the table "
                "went through, or none."
            )

    def _note_rows(self, first_row: int, linear: Float64[np.ndarray, "case row"]) -> None:
        """Sums for the policy that fills empty cells with their gene's mean."""
        if self._config.missing_cells == "mean":
            stop = first_row + linear.shape[1]
            self._sums[first_row:stop] += np.nansum(linear, axis=0)
            self._present[first_row:stop] += np.isfinite(linear).sum(axis=0)


def check_samples(results: Sequence[Collected], keep: Mapping[str, str] | None) -> None:
    """Refuses wanted samples that no table has, and cases that have two.

    Raises:
        TableError: there is one.
    """
    found = {name for result in results for name in result.samples}
    absent = [name for name in keep or () if name not in found]
    if absent:
        raise TableError(
            f"{results[0].uri}: expected {len(keep or ()):,} samples, {len(absent):,} are not in "
            f"it, the first {absent[0]}. Correct the names."
        )
    if not any(result.cases for result in results):
        raise TableError(f"{results[0].uri}: expected samples to keep, got none.")
    seen: dict[str, str] = {}
    for result in results:
        for case in result.cases:
            if case in seen:
                raise TableError(
                    f"{result.uri}: case {case} has a second sample (the first is in {seen[case]})."
                    " Choose one sample per case."
                )
            seen[case] = result.uri
