"""Expression tables → an expression store, in memory that does not grow with the number of cases.

A table is read once (text in blocks of lines, Parquet in groups of columns), checked, made linear
and set aside on disk; then a range of cases at a time is merged, brought to the vocabulary, logged
and written. Cases are stored in the order of their names, and so are genes unless a vocabulary
gives theirs: the order of rows and columns of a table does not change the result.
Paper: "RNA-Seq pre-processing" (RSEM of cBioPortal, log1p, genes of the Gene2Vec vocabulary).
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from mstar.data.rna import scale
from mstar.data.rna.collect import Collected, check_samples, collect
from mstar.data.rna.config import ExpressionConfig
from mstar.data.rna.gene_vectors import PAPER_GENES, read_gene_list, read_gene_vectors
from mstar.data.rna.genes import GeneNamer, GenePlan, merge_rows, plan_genes, read_gene_map
from mstar.data.rna.store_writer import StoreWriter
from mstar.data.rna.summary import ExpressionSummary
from mstar.errors import ConfigError, TableError

__all__ = ["ExpressionConfig", "ExpressionSummary", "preprocess_expression"]

log = logging.getLogger(__name__)

_BUDGET_BYTES = 1 << 25
_LOG_OF_BASE = {"e": 1.0, "2": float(np.log(2.0)), "10": float(np.log(10.0))}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Vocabulary:
    kind: str
    genes: tuple[str, ...] | None  # None: those of the tables
    vectors: Float32[np.ndarray, "gene dim"] | None = None


def preprocess_expression(
    source_uri: str | Sequence[str],
    out_folder_uri: str,
    config: ExpressionConfig,
    *,
    keep: Mapping[str, str] | None = None,
) -> ExpressionSummary:
    """Writes the expression store of one table, or of several whose cases are joined.

    keep: sample of a table → case; None keeps every sample under its own name. Cells of samples
    that are not kept only have to be numbers.

    Raises:
        TableError: a table is malformed, or against what is stated or known of it.
    """
    sources = [source_uri] if isinstance(source_uri, str) else list(source_uri)
    if not sources:
        raise ConfigError("expression: expected one table or more, got none.")
    vocabulary = _read_vocabulary(config)
    wanted = None if vocabulary.genes is None else frozenset(vocabulary.genes)
    namer = GeneNamer(known=read_gene_map(config.gene_map) if config.gene_map else {})
    with ExitStack() as stack:
        results = [
            collect(uri, config, keep=keep, namer=namer, vocabulary=wanted, stack=stack)
            for uri in sources
        ]
        check_samples(results, keep)
        _check_units(results)
        genes, absent = _choose_genes(results, vocabulary, config)
        plans = [plan_genes(result.rows, genes) for result in results]
        notes = _notes(results, vocabulary, config)
        for note in notes:
            log.warning(note)
        cases = sorted(case for result in results for case in result.cases)
        with StoreWriter(out_folder_uri, cases, genes, scratch=config.scratch) as writer:
            zero = tuple(sorted(_write_all(writer, results, plans, config)))
            summary = _summary(results, config, vocabulary, genes, absent, zero, notes)
            vectors = _vectors_of(vocabulary, genes)
            return writer.finish(summary, config, vectors)


def _read_vocabulary(config: ExpressionConfig) -> _Vocabulary:
    if config.gene_vectors:
        genes, vectors = read_gene_vectors(config.gene_vectors)
        return _Vocabulary(kind="gene_vectors", genes=genes, vectors=vectors)
    if config.gene_list:
        return _Vocabulary(kind="gene_list", genes=read_gene_list(config.gene_list))
    return _Vocabulary(kind="tables", genes=None)


def _vectors_of(
    vocabulary: _Vocabulary, genes: Sequence[str]
) -> Float32[np.ndarray, "gene dim"] | None:
    if vocabulary.vectors is None or vocabulary.genes is None:
        return None
    places = {name: index for index, name in enumerate(vocabulary.genes)}
    return vocabulary.vectors[[places[gene] for gene in genes]]


def _check_units(results: Sequence[Collected]) -> None:
    first = results[0]
    other = next((result for result in results if result.unit != first.unit), None)
    if other is not None:
        raise TableError(
            f"{other.uri}: expected {first.unit} as {first.uri} has it, got {other.unit}. Units "
            "are never joined: preprocess them into two stores."
        )


def _choose_genes(
    results: Sequence[Collected], vocabulary: _Vocabulary, config: ExpressionConfig
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The genes of the store, and how many of the vocabulary each table lacks."""
    have = [frozenset(result.rows) for result in results]
    genes = vocabulary.genes or tuple(sorted(frozenset().union(*have)))
    absent = []
    for result, names in zip(results, have, strict=True):
        lacking = [gene for gene in genes if gene not in names]
        absent.append(len(lacking))
        _check_absent(result.uri, genes, lacking, result.rows, config)
    if config.absent_genes == "drop":
        genes = tuple(gene for gene in genes if all(gene in names for names in have))
    if not genes:
        raise TableError(f"{results[0].uri}: expected genes to keep, got none.")
    return genes, tuple(absent)


def _check_absent(
    uri: str,
    genes: Sequence[str],
    lacking: Sequence[str],
    rows: Sequence[str],
    config: ExpressionConfig,
) -> None:
    num_found = len(genes) - len(lacking)
    if lacking and config.absent_genes == "error":
        raise TableError(
            f"{uri}: expected all {len(genes):,} genes of the vocabulary, {len(lacking):,} are not "
            f"in it, the first {lacking[0]}. State absent_genes zero, mean or drop."
        )
    if num_found < config.min_vocabulary_share * len(genes):
        shown = f"it has rows such as {rows[0]}" if rows else "none of its rows is one"
        raise TableError(
            f"{uri}: expected at least {config.min_vocabulary_share:.0%} of the {len(genes):,} "
            f"genes such as {genes[0]}, got {num_found:,}; {shown}. Ids of another kind need "
            "a gene_map (columns id, gene); a small panel a lower min_vocabulary_share."
        )


def _write_all(
    writer: StoreWriter,
    results: Sequence[Collected],
    plans: Sequence[GenePlan],
    config: ExpressionConfig,
) -> Iterator[str]:
    """Writes every case; yields those without any expression."""
    for result, plan in zip(results, plans, strict=True):
        num_rows = max(len(result.rows), len(plan.genes))
        step = max(1, _BUDGET_BYTES // (4 * max(1, num_rows)))
        for start in range(0, len(result.cases), step):
            cases = result.cases[start : start + step]
            values = _finished(result.read(start, start + len(cases)), plan, config)
            writer.write(cases, values)
            present = plan.first_row >= 0
            yield from (c for c, row in zip(cases, values, strict=True) if not row[present].any())


def _finished(
    linear: Float32[np.ndarray, "case row"], plan: GenePlan, config: ExpressionConfig
) -> Float32[np.ndarray, "case gene"]:
    """Merged, logged, and filled where the table has no such gene."""
    merged = merge_rows(linear, plan, config.duplicate_genes)
    logged: Float32[np.ndarray, "case gene"] = np.log1p(merged, out=merged)
    if config.log_base != "e":
        logged /= np.float32(_LOG_OF_BASE[config.log_base])
    if config.absent_genes == "mean" and len(plan.absent):
        present = plan.first_row >= 0
        means = logged[:, present].mean(axis=1, dtype=np.float64)
        logged[:, plan.absent] = means[:, None].astype(np.float32)
    return logged


def _notes(
    results: Sequence[Collected], vocabulary: _Vocabulary, config: ExpressionConfig
) -> tuple[str, ...]:
    """What a reader of results must know."""
    notes = []
    if vocabulary.kind != "gene_vectors":
        notes.append(
            "NO GENE2VEC FILE: gene vectors will be LEARNED, not the frozen ones of the paper, and "
            f"the vocabulary is not its {PAPER_GENES:,} genes. Give gene_vectors for both."
        )
    counts: Counter[str] = sum((result.counts for result in results), Counter())
    if counts["date_like_names"]:
        notes.append(
            f"{counts['date_like_names']:,} gene names look like dates (1-Mar): a spreadsheet "
            "changed them; those genes are lost."
        )
    if counts["missing_cells"]:
        notes.append(
            f"{counts['missing_cells']:,} empty cells were filled: {config.missing_cells}."
        )
    if counts["negative_cells"]:
        notes.append(f"{counts['negative_cells']:,} negative cells were taken as zero.")
    for result in results:
        said = scale.named_unit(result.uri.rpartition("/")[2])
        if said not in (None, result.unit):
            notes.append(f"{result.uri}: taken as {result.unit}, as stated; its name says {said}.")
    return tuple(notes)


def _summary(
    results: Sequence[Collected],
    config: ExpressionConfig,
    vocabulary: _Vocabulary,
    genes: Sequence[str],
    absent: tuple[int, ...],
    zero_cases: tuple[str, ...],
    notes: tuple[str, ...],
) -> ExpressionSummary:
    counts: Counter[str] = sum((result.counts for result in results), Counter())
    num_cases = sum(len(result.cases) for result in results)
    num_samples = sum(len(result.samples) for result in results)
    return ExpressionSummary(
        unit=results[0].unit,
        transform="none" if config.transform == "unstated" else config.transform,
        num_cases=num_cases,
        num_genes=len(genes),
        vocabulary=vocabulary.kind,
        num_samples=num_samples,
        num_samples_left_out=num_samples - num_cases,
        absent_genes=absent,
        zero_cases=zero_cases,
        notes=notes,
        num_source_rows=counts["source_rows"],
        num_rows_outside_vocabulary=counts["rows_outside_vocabulary"],
        num_repeated_rows=counts["repeated_rows"],
        num_unnamed_rows=counts["unnamed_rows"],
        num_counter_rows=counts["counter_rows"],
        num_missing_cells=counts["missing_cells"],
        num_negative_cells=counts["negative_cells"],
    )
