"""A generated cohort with every task's labels and made-up features, for sweeps over the whole list.

Gene expression and signatures are those that `mstar cohort generate` writes.

No slide is painted: a slide's features are noise whose first axes carry the case's factors.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mstar.cohorts import build, generate, split_job
from mstar.cohorts.generated.config import GenerateConfig
from mstar.cohorts.generated.factors import CaseFactors, iter_cases, slides_of
from mstar.data.splits.preset import PresetConfig
from support.language_world import write_stage1, write_stage2
from support.planted_tasks import DIM, write_store

TINY_DECODER = tuple(
    f"histgen.{word}"
    for word in (
        "epochs=1 batch_slides=8 max_tokens=20 beam=1 d_vf=32 width=32 ff=32 heads=2 "
        "decoder_layers=1 region_tokens=4 memory_slots=16 memory_top=4 prototypes=4"
    ).split()
)
"""Options that let report generation end in seconds, and write nothing that means anything."""


def full_cohort(root: Path, cases: int = 160) -> tuple[str, str]:
    """The folders of the cohort and of its feature store; root/S1 and root/S2 are both stages'."""
    config = GenerateConfig(
        out=str(root / "C"), cases=cases, labels="all", num_cancer_types=4, num_genes=260
    )
    drawn = list(iter_cases(config))
    generate.write_tables(config, drawn)
    slides = [slide for case in drawn for slide in slides_of(config, case)]
    generate.write_manifest(config, slides)
    build.run(generate.build_config(config, drawn))
    settings = PresetConfig(cohorts="all", min_cases=10, ratio=(0.5, 0.2, 0.3))
    split_job.run(split_job.SplitConfig(cohort=config.out, preset="mstar", settings=settings))
    types = config.cancer_types
    write_store(root / "F", {s.slide_id: features(s.slide_id, s.case, types) for s in slides})
    write_stage1(root / "S1", features=DIM)
    write_stage2(root / "S2", features=DIM)
    return config.out, str(root / "F")


def features(slide_id: str, case: CaseFactors, types: tuple[str, ...]) -> np.ndarray:
    """A few patches, shifted by type, grade, mutation, pathway and hazard."""
    rng = np.random.default_rng(list(slide_id.encode()))
    rows = rng.standard_normal((int(rng.integers(4, 12)), DIM))
    rows[:, types.index(case.cancer_type)] += 2.0
    shifts = (case.grade, 2.0 * case.mutation, 3.0 * case.pathway, case.hazard)
    rows[:, 8:12] += np.asarray(shifts, np.float64)
    return rows.astype(np.float16)
