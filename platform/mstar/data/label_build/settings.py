"""What the sources leave open, with the defaults that the method reference recommends."""

from dataclasses import dataclass
from typing import Literal

from mstar.errors import ConfigError

MEDIAN = "median"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSettings:
    """How labels are derived where published descriptions leave it open."""

    mutation: Literal["non-silent", "drivers"] = "non-silent"
    """What makes a gene mutated: any non-silent mutation, or those of the table --drivers alone."""
    drivers: str | None = None
    """Table of driver mutations: gene (or Hugo_Symbol), protein_change (or HGVSp_Short: V600E)."""
    non_silent: tuple[str, ...] = ()
    """Further values of Variant_Classification that change the protein, such as Splice_Region."""
    tmb_cutoff: str = "10"
    """Mutations per megabase from which on the burden is high, or `median` of the task's cases."""
    tmb_megabases: float = 38.0
    """Size of the exome in megabases, where the burden is counted from a MAF."""
    os_source: Literal["auto", "cohort", "cdr", "cbioportal"] = "auto"
    """Overall survival of TCGA: of cases.csv, of TCGA-CDR, of cBioPortal; auto = the first of
    TCGA-CDR, cBioPortal, cohort that is there."""
    dfs_source: Literal["cbioportal", "cdr-dfi", "cdr-pfi"] = "cbioportal"
    """Disease-free survival of TCGA: cBioPortal's fields, or DFI or PFI of TCGA-CDR."""
    rfs_event: Literal["recurrence-or-death", "recurrence"] = "recurrence-or-death"
    """What ends recurrence-free survival in HANCOCK."""
    redacted: Literal["drop", "keep"] = "drop"
    """Cases that TCGA-CDR marks as redacted."""
    equivocal: Literal["drop", "settle"] = "drop"
    """Equivocal or indeterminate stains: drop = no label, settle = hybridisation decides."""
    idh_source: Literal["table", "mutations"] = "table"
    """IDH status: of a subtype table, or mutated where IDH1 or IDH2 has a non-silent mutation."""
    cms_call: Literal["final", "network", "classifier"] = "final"
    """Consensus molecular subtype: the final call, that of the network, that of the classifier."""
    isolated_cells: Literal["metastasis", "normal", "drop"] = "metastasis"
    """CAMELYON17's slides with isolated tumour cells (itc)."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.tmb_cutoff != MEDIAN:
            try:
                positive = 0 < float(self.tmb_cutoff) < float("inf")
            except ValueError:
                positive = False
            if not positive:
                raise ConfigError(
                    f"--tmb-cutoff {self.tmb_cutoff!r}: expected mutations per megabase, or median."
                )
        if not self.tmb_megabases > 0:
            raise ConfigError(f"--tmb-megabases {self.tmb_megabases}: expected more than 0.")
        if (self.mutation == "drivers") != (self.drivers is not None):
            raise ConfigError("--mutation drivers and --drivers TABLE are given together.")
