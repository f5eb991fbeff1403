"""A generated cohort with every task's labels and made-up features, for sweeps over the whole list.

No slide is painted: a slide's features are noise whose first axes carry the case's factors.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from mstar.cohorts import build, split_job
from mstar.cohorts.generate import CLINICAL
from mstar.cohorts.generated import labels
from mstar.cohorts.generated.config import GenerateConfig
from mstar.cohorts.generated.factors import CaseFactors, iter_cases, slides_of
from mstar.data.splits.preset import PresetConfig
from mstar.data.tables import write_table
from support.planted_tasks import DIM, write_store

COLUMNS = ("case_id", "cancer_type", "site", "os_months", "os_event")


def full_cohort(root: Path, cases: int = 160) -> tuple[str, str]:
    """The folders of the cohort and of its feature store."""
    config = GenerateConfig(out=str(root / "C"), cases=cases, labels="all", num_cancer_types=4)
    drawn = list(iter_cases(config))
    labels.write_labels(config.out, config, drawn)
    clinical = f"{config.out}/{CLINICAL}"
    write_table(clinical, pa.table({n: [getattr(case, n) for case in drawn] for n in COLUMNS}))
    slides = [slide for case in drawn for slide in slides_of(config, case)]
    table = {
        "path": [f"slides/{slide.slide_id}.svs" for slide in slides],
        "slide_id": [slide.slide_id for slide in slides],
        "mpp": [slide.mpp for slide in slides],
        "case_id": [slide.case.case_id for slide in slides],
    }
    write_table(f"{config.out}/slides.csv", pa.table(table))
    build.run(
        build.BuildConfig(
            out=config.out,
            clinical=clinical,
            slides=f"{config.out}/slides.csv",
            ids="plain",
            data_source="generated",
        )
    )
    settings = PresetConfig(cohorts="all", min_cases=10, ratio=(0.5, 0.2, 0.3))
    split_job.run(split_job.SplitConfig(cohort=config.out, preset="mstar", settings=settings))
    types = config.cancer_types
    write_store(root / "F", {s.slide_id: features(s.slide_id, s.case, types) for s in slides})
    return config.out, str(root / "F")


def features(slide_id: str, case: CaseFactors, types: tuple[str, ...]) -> np.ndarray:
    """A few patches, shifted by type, grade, mutation, pathway and hazard."""
    rng = np.random.default_rng(list(slide_id.encode()))
    rows = rng.standard_normal((int(rng.integers(4, 12)), DIM))
    rows[:, types.index(case.cancer_type)] += 2.0
    shifts = (case.grade, 2.0 * case.mutation, 3.0 * case.pathway, case.hazard)
    rows[:, 8:12] += np.asarray(shifts, np.float64)
    return rows.astype(np.float16)
