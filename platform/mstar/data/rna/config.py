"""What may be stated about expression tables, and what is done with what they lack."""

from dataclasses import dataclass
from typing import Literal

from mstar.errors import ConfigError

Unit = Literal["unstated", "rsem", "tpm", "fpkm", "counts"]
Transform = Literal["unstated", "none", "log2p1", "lnp1", "log10p1", "log2p0.001"]
Orientation = Literal["auto", "genes-by-cases", "cases-by-genes"]
DuplicateRule = Literal["sum", "mean", "max", "first", "error"]
CellPolicy = Literal["error", "zero", "mean"]
AbsentPolicy = Literal["zero", "mean", "error", "drop"]
LogBase = Literal["e", "2", "10"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpressionConfig:
    """How expression tables are read and what becomes of them."""

    unit: Unit = "unstated"
    """Unit of the numbers, before any logarithm. Unstated: taken from the table's second header or
    its name where these say it, refused otherwise. Tables of two units are never joined."""
    transform: Transform = "unstated"
    """Logarithm the table went through, which is undone first: log2p1 = log2(x + 1) (UCSC Xena),
    lnp1, log10p1, log2p0.001 = log2(x + 0.001) (Xena Toil), or none. Unstated: none is assumed, and
    refused when the numbers look logged (none above 50)."""
    orientation: Orientation = "auto"
    """Which way round the table lies; auto goes by its column names and its first column."""
    duplicate_genes: DuplicateRule = "sum"
    """Rows of one gene name, joined per case on the linear scale. sum, because every unit taken
    here is additive: two loci (or the X and Y copy) of a symbol have reads of their own, and a mean
    would halve a gene whose second row is empty. first: the upper row. error: refused."""
    missing_cells: CellPolicy = "error"
    """Empty (NA, NaN) cells: refused with row and column; or counted and taken as zero; or as the
    gene's mean, on the linear scale, over the kept cases of that table."""
    negative_cells: Literal["error", "zero"] = "error"
    """Negative numbers: refused with row and column, or counted and taken as zero (batch-corrected
    tables have some)."""
    absent_genes: AbsentPolicy = "zero"
    """Genes of the vocabulary that a table lacks, counted always. zero: not expressed. mean: the
    mean of the case's other values, after the logarithm. drop: left out of the vocabulary for all
    cases (the intersection, which is how the paper words it). error: refused."""
    min_vocabulary_share: float = 0.5
    """Smallest share of the vocabulary that each table must have, from 0 to 1; less means that its
    ids are of another kind."""
    log_base: LogBase = "e"
    """Base of the logarithm of what is stored, log(x + 1)."""
    gene_vectors: str = ""
    """Gene2Vec text file (a gene and its numbers a line). Its genes are the vocabulary, in its
    order, and its vectors are kept beside the values for a frozen gene table."""
    gene_list: str = ""
    """Text file with one gene a line: a vocabulary without vectors. Not with gene_vectors."""
    gene_map: str = ""
    """Table with columns id and gene: other ids (Ensembl, Entrez) to the names of the vocabulary. A
    Xena probeMap is one."""
    ignore_columns: tuple[str, ...] = ()
    """Columns of the table that are neither ids nor numbers of the matrix."""
    scratch: str = ""
    """Local folder for intermediate files, about twice the size of the result; empty for the
    system's temporary folder."""

    def __post_init__(self) -> None:
        """Refuses what the types cannot."""
        if self.gene_vectors and self.gene_list:
            raise ConfigError(
                "gene_vectors and gene_list are both given. Give one: each is a vocabulary."
            )
        if not 0.0 <= self.min_vocabulary_share <= 1.0:
            raise ConfigError(
                f"min_vocabulary_share: expected 0 to 1, got {self.min_vocabulary_share}."
            )
