"""What a generated cohort is to be: one frozen dataclass that all of its makers share."""

import math
from dataclasses import dataclass

from mstar.errors import ConfigError

MIN_CASES, MAX_CASES = 8, 10_000
CANCER_TYPES = (
    "BRCA", "LUAD", "KIRC", "COAD", "LGG", "HNSC", "SKCM", "UCEC",
)  # fmt: skip
"""TCGA codes in the order in which `num_cancer_types` takes them."""

_SHARES = (
    "mutation_rate", "mutation_type_link", "pathway_type_link", "signal_fraction", "censoring",
    "missing_wsi", "missing_report", "missing_rna", "pen_fraction", "fold_fraction",
)  # fmt: skip
_NOT_NEGATIVE = ("signal_strength", "report_strength", "rna_strength", "noise", "site_effect")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateConfig:
    """Generate a small but complete cohort with a known truth: slides, reports, RNA, survival."""

    out: str
    """Folder for the cohort: slides/, cases.csv, reports.csv, rna.tsv, labels/, truth/."""
    cases: int = 24
    """Number of cases (patients), 8 to 10,000."""
    seed: int = 0
    """Everything follows from it: equal seeds and settings give equal bytes."""
    num_cancer_types: int = 4
    """Number of cancer types, 1 to 8; every type gets the same share of the cases."""
    num_sites: int = 4
    """Number of sites (hospitals), 1 to 99; a case's site tells nothing about its other factors."""
    num_grades: int = 3
    """Grades that occur: 3, or 2 (grades 1 and 3), or 1 (grade 2), which tells nothing apart."""
    mutation_rate: float = 0.5
    """Share of the cases that carry the planted mutation."""
    mutation_type_link: float = 0.0
    """How far the cancer type decides the mutation: 0 not at all, 1 wholly."""
    pathway_type_link: float = 0.0
    """How far the cancer type decides the pathway's activity: 0 not at all, 1 wholly."""
    signal_strength: float = 1.0
    """How strongly the factors show in slides, and in the others unless stated below: 0 not."""
    report_strength: float | None = None
    """The same for reports; none: as `signal_strength`."""
    rna_strength: float | None = None
    """The same for gene expression; none: as `signal_strength`."""
    noise: float = 1.0
    """Noise in all three: nuclei that go astray, OCR errors and silence in reports, RNA spread."""
    site_effect: float = 1.0
    """How far stain, and the RNA batch of the sites, differ: 0 not at all."""
    signal_fraction: float = 0.3
    """Share of the tissue cells of a slide that carry the mutation's and the pathway's signal."""
    slides_per_case_max: int = 2
    """Most slides of a case; a case has 1 to this many, whatever its factors."""
    slide_px: int = 1536
    """Typical side of a slide at level 0, pixels; slides differ by a third."""
    mpp: float = 0.5
    """Typical microns per pixel at level 0; sites' scanners differ by a few per cent."""
    patch_px: int = 256
    """Side of the cells in which the truth is told (truth/patches.parquet), level-0 pixels."""
    pen_fraction: float = 0.15
    """Share of the slides with pen marks."""
    fold_fraction: float = 0.15
    """Share of the slides with tissue folds."""
    num_genes: int = 1000
    """Number of genes in rna.tsv, at least 200."""
    missing_wsi: float = 0.0
    """Share of the cases without a slide."""
    missing_report: float = 0.1
    """Share of the cases without a report."""
    missing_rna: float = 0.1
    """Share of the cases without gene expression."""
    censoring: float = 0.4
    """Share of the cases whose death is not observed, in expectation."""
    hazard_strength: float = 1.2
    """Log hazard ratio of one standard deviation of the factors' joint risk."""
    labels: str = ""
    """Labels of the 97 tasks to make besides the planted ones: `all`, or task ids with commas."""
    workers: int = 0
    """Processes that paint slides; 0: one a core. The bytes do not depend on it."""
    dry_run: bool = False
    """Say what would be made, then stop."""

    def __post_init__(self) -> None:
        """Refuse what cannot be made."""
        _check_range("cases", self.cases, MIN_CASES, MAX_CASES)
        _check_range("num_cancer_types", self.num_cancer_types, 1, len(CANCER_TYPES))
        _check_range("num_sites", self.num_sites, 1, 99)
        _check_range("num_grades", self.num_grades, 1, 3)
        _check_range("slides_per_case_max", self.slides_per_case_max, 1, 20)
        _check_range("slide_px", self.slide_px, 2 * self.patch_px, 20_000)
        _check_range("patch_px", self.patch_px, 64, 1024)
        _check_range("mpp", self.mpp, 0.1, 2.0)
        _check_range("num_genes", self.num_genes, 200, 60_000)
        _check_range("hazard_strength", self.hazard_strength, 0.0, 5.0)
        _check_range("censoring", self.censoring, 0.0, 0.95)
        _check_range("seed", self.seed, 0, 2**63 - 1)
        _check_range("workers", self.workers, 0, 1024)
        for name in _SHARES:
            _check_range(name, getattr(self, name), 0.0, 1.0)
        for name in _NOT_NEGATIVE:
            if getattr(self, name) is not None:
                _check_range(name, getattr(self, name), 0.0, 10.0)

    @property
    def cancer_types(self) -> tuple[str, ...]:
        """The cancer types of this cohort."""
        return CANCER_TYPES[: self.num_cancer_types]

    @property
    def strength_in_reports(self) -> float:
        """How strongly the factors show in reports."""
        return float(self.signal_strength if self.report_strength is None else self.report_strength)

    @property
    def strength_in_rna(self) -> float:
        """How strongly the factors show in gene expression."""
        return float(self.signal_strength if self.rna_strength is None else self.rna_strength)


def _check_range(name: str, value: float, least: float, most: float) -> None:
    if not (math.isfinite(value) and least <= value <= most):
        flag = "--" + name.replace("_", "-")
        raise ConfigError(f"{flag}: expected {least:,} to {most:,}, got {value}. Choose within.")
