"""What became of expression tables, in counts."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpressionSummary:
    """What became of expression tables; `config.to_dict` makes it plain.

    Counts of rows, cells and samples are summed over tables.
    absent_genes: genes of the vocabulary that a table lacks, per table in the order given.
    zero_cases: cases without any expression, which no encoder should be shown.
    notes: what a reader of results must know.
    """

    unit: str
    transform: str
    num_cases: int
    num_genes: int
    vocabulary: str  # gene_vectors | gene_list | tables
    num_samples: int
    num_samples_left_out: int
    num_source_rows: int
    num_rows_outside_vocabulary: int
    num_repeated_rows: int
    num_unnamed_rows: int
    num_counter_rows: int
    num_missing_cells: int
    num_negative_cells: int
    absent_genes: tuple[int, ...] = ()
    zero_cases: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    digest: str = ""
