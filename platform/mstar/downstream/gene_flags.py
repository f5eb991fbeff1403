"""What a caller can say about gene expression, for every command that prepares fusion tasks."""

from dataclasses import dataclass

from mstar.data.rna.case_files import Scale
from mstar.data.rna.signatures import RepeatedGenes
from mstar.data.rna.store import FACTS
from mstar.data.task_genes import GeneReader, GeneSettings, MissingGenes, MissingRna
from mstar.storage import objects

EXPRESSION, SIGNATURES = "expression", "signatures.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneFlags:
    """Gene expression of tasks of kind fusion_survival; the others do not read it."""

    genes: str = ""
    """Gene expression: a cohort's expression store, or a folder of <case>.csv files with
    Gene,Value[,Index]; empty: <cohort>/expression."""

    signatures: str = ""
    """Signature table: a column of gene names for each group, which mcat, motcat and cmta read
    apart; empty: <cohort>/signatures.csv where there is one."""

    missing_genes: MissingGenes = "mean"
    """A gene that a case's file lacks: mean (of the training split), zero (not expressed) or
    error. Cases and values like this are counted."""

    missing_rna: MissingRna = "drop"
    """A case without gene expression: drop (counted, as in the paper) or error."""

    repeated_genes: RepeatedGenes = "error"
    """A gene twice in a group of the signature table: error, or drop (counted)."""

    gene_scale: Scale = "log"
    """Of the values in <case>.csv files: log = as they are, linear = log(1 + value) is taken. An
    expression store says its own."""


def gene_reader(flags: GeneFlags, cohort: str) -> GeneReader | None:
    """What reads the gene expression that is given, or that of the cohort; None without any."""
    source = flags.genes or _of_cohort(cohort, f"{EXPRESSION}/{FACTS}").removesuffix(f"/{FACTS}")
    if not source:
        return None
    return GeneReader(
        GeneSettings(
            source=source,
            signatures=flags.signatures or _of_cohort(cohort, SIGNATURES),
            missing_genes=flags.missing_genes,
            missing_rna=flags.missing_rna,
            repeated_genes=flags.repeated_genes,
            scale=flags.gene_scale,
        )
    )


def _of_cohort(cohort: str, name: str) -> str:
    """The address of a file of the cohort folder; empty where it has none."""
    uri = objects.join(cohort, name) if cohort else ""
    return uri if uri and objects.exists(uri) else ""
