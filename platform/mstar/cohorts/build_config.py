"""What a caller can set for the build of a cohort."""

from dataclasses import dataclass, field
from typing import Literal

from mstar.cohorts.selection import IdKind, parse_rna_samples
from mstar.data.barcodes import SECTIONS
from mstar.data.rna.config import ExpressionConfig
from mstar.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildConfig:
    """Build a cohort folder from slides, reports, gene expression and a clinical table."""

    out: str
    """Cohort folder to write; local or s3://."""
    clinical: str | tuple[str, ...]
    """Clinical table (or several, of different cases), which says what cases there are: case_id,
    cancer_type [, site, os_months, os_event], or one of cBioPortal (PATIENT_ID …), TCGA-CDR
    (bcr_patient_barcode …) or UCSC Xena (_PATIENT …)."""
    slides: str | None = None
    """Slides: a file, folder, glob, s3:// prefix, or manifest .csv/.parquet (path, slide_id?, mpp?,
    case_id?)."""
    reports: str | None = None
    """Reports: case_id,text [,model,prompt_digest], or TCGA-Reports (patient_filename,text)."""
    rna: str | tuple[str, ...] | None = None
    """Gene expression: genes × cases or cases × genes, .tsv, .txt, .csv or .parquet; several tables
    of one unit are joined, such as those of cBioPortal's studies."""
    ids: IdKind = "tcga"
    """tcga = names are TCGA barcodes, which are parsed; plain = names are case ids, and the slide
    manifest has a column case_id."""
    sections: tuple[str, ...] = ("DX",)
    """TCGA slides to take: DX (diagnostic), TS, MS, BS (frozen)."""
    rna_samples: tuple[str, ...] = ("01", "SKCM:06,01", "LAML:03")
    """TCGA sample types to take expression of, in order of preference: of all cancer types (01),
    and of single ones (SKCM:06,01)."""
    slide_mpp: float | None = None
    """Microns per pixel at level 0 of slides for which the manifest states none."""
    data_source: Literal["real", "generated"] = "real"
    """Whether patients or a program made the data; written into everything that follows."""
    expression: ExpressionConfig = field(default_factory=ExpressionConfig)
    dry_run: bool = False
    """Select and count, print the summary, write nothing."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant before a file is read."""
        unknown = [section for section in self.sections if section not in SECTIONS]
        if unknown or not self.sections:
            raise ConfigError(
                f"--sections {' '.join(self.sections)}: expected some of {', '.join(SECTIONS)}"
            )
        parse_rna_samples(self.rna_samples)

    @property
    def clinical_uris(self) -> tuple[str, ...]:
        """The clinical tables."""
        return (self.clinical,) if isinstance(self.clinical, str) else self.clinical

    @property
    def rna_uris(self) -> tuple[str, ...]:
        """The expression tables, none when there is no expression."""
        return (self.rna,) if isinstance(self.rna, str) else self.rna or ()
