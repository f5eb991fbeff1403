"""Small sources of a cohort, as they are published, and how to read what was built of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from mstar.cohorts.build import BuildConfig
from mstar.data.rna.config import ExpressionConfig
from mstar.storage import objects

UUID = "25c0b433-5557-4165-922e-2c1eac9c26f0"
A, B, C, D, E = (f"TCGA-{site}-000{n}" for n, site in enumerate(("AA", "BB", "EE", "AA", "DD")))
SLIDES = (
    f"{A}-01Z-00-DX2.{UUID}",
    f"{A}-01Z-00-DX1.{UUID}",
    f"{A}-01A-01-TS1.{UUID}",
    f"{B}-01Z-00-DX1.{UUID}",
    "TCGA-ZZ-9999-01Z-00-DX1",
    "holiday",
)
CLINICAL = f"""#Patient Identifier\tOverall Survival
PATIENT_ID\tCANCER_TYPE_ACRONYM\tOS_STATUS\tOS_MONTHS
{E}\tBRCA\t0:LIVING\t3
{D}\tBRCA\t0:LIVING\t
{C}\tSKCM\t1:DECEASED\t12.25
{B}\tLUAD\t0:LIVING\t7.5
{A}\tBRCA\t1:DECEASED\t20
"""
REPORTS = f"""patient_filename,text
{A}.{UUID},The tumour is large. It is   grade 3.
{C}.{UUID},Melanoma of the skin with ulceration.
TCGA-ZZ-9999.{UUID},Nobody is known by this name.
"""
SAMPLES = (f"{A}-01A-11R-A084-07", f"{A}-01A-11R-A090-07", f"{B}-11", f"{C}-06", f"{D}-01", "Note")
GENES = ("TP53", "BRCA1", "EGFR", "KRAS")
CONFIG = {"expression": ExpressionConfig(unit="rsem", transform="none")}


def rna_frame() -> pd.DataFrame:
    """RSEM-like numbers, genes × samples."""
    rng = np.random.default_rng(0)
    values = rng.gamma(0.5, 4000, (len(GENES), len(SAMPLES))).round(4)
    return pd.DataFrame(values, index=pd.Index(GENES, name="Hugo_Symbol"), columns=SAMPLES)


def write_sources(folder: Path) -> BuildConfig:
    """Sources as TCGA's are; the config that builds a cohort of them."""
    slides = folder / "slides" / UUID
    slides.mkdir(parents=True)
    for name in SLIDES:
        (slides / f"{name}.svs").write_bytes(b"")
    (folder / "clinical.txt").write_text(CLINICAL)
    (folder / "reports.csv").write_text(REPORTS)
    rna_frame().to_csv(folder / "rna.tsv", sep="\t")
    return BuildConfig(
        out=str(folder / "C"),
        clinical=str(folder / "clinical.txt"),
        slides=str(folder / "slides"),
        reports=str(folder / "reports.csv"),
        rna=str(folder / "rna.tsv"),
        **CONFIG,
    )


def contents(out: str) -> dict[str, bytes]:
    """Name → bytes of every file of a cohort folder."""
    return {info.rel: objects.read_bytes(info.uri) for info in objects.list_files(out)}


def record_of(out: str) -> dict[str, object]:
    """What cohort.json says."""
    found = json.loads(objects.read_bytes(objects.join(out, "cohort.json")))
    assert isinstance(found, dict)
    return found
