"""A cohort for fusion: feature vectors and expression with a planted hazard, on disk.

Each case has two latent numbers: `a` shows in its slide (a share of the patches is shifted by it
along one axis), `b` in its expression (the genes of one group follow it). The three label tables
differ in what the hazard follows: both, the slide's number alone, or the genes' alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mstar.data.rna.config import ExpressionConfig
from mstar.data.rna.expression import preprocess_expression
from support.planted_tasks import DIM, write_store

TASKS = {"fusion_both": (1.0, 1.0), "fusion_slides": (1.0, 0.0), "fusion_genes": (0.0, 1.0)}
"""Task → weights of a and b in the log hazard, before it is scaled to `hazard`."""
GROUPS, GENES_PER_GROUP, LOOSE_GENES = 6, 10, 12
SIGNAL_GROUP = 2


@dataclass(frozen=True, kw_only=True)
class FusionPlan:
    """How much of everything; patches: least and most of a slide; shares: train, val, test."""

    cases: int = 60
    patches: tuple[int, int] = (6, 20)
    hazard: float = 1.6
    shares: tuple[float, float] = (0.5, 0.2)
    without_rna: int = 0
    seed: int = 0


def gene_names() -> list[str]:
    """Those of the groups, then some that are in none."""
    grouped = [f"G{group}N{number:02d}" for group in range(GROUPS) for number in range(10)]
    return [*grouped, *(f"LOOSE{number:02d}" for number in range(LOOSE_GENES))]


def signature_lines() -> list[str]:
    """The six groups as a signature table."""
    header = ",".join(f"group {number}" for number in range(GROUPS))
    rows = [
        ",".join(f"G{group}N{number:02d}" for group in range(GROUPS))
        for number in range(GENES_PER_GROUP)
    ]
    return [header, *rows]


def plant_fusion(root: Path, plan: FusionPlan | None = None) -> dict[str, Any]:
    """Write everything; returns settings of a sweep over it, to be changed at will."""
    plan = plan or FusionPlan()
    rng = np.random.default_rng(plan.seed)
    ids = [f"c{number:04d}" for number in range(plan.cases)]
    a, b = rng.standard_normal((2, plan.cases))
    (root / "labels").mkdir(parents=True)
    for task, (of_slide, of_genes) in TASKS.items():
        weight = np.hypot(of_slide, of_genes)
        eta = plan.hazard * (of_slide * a + of_genes * b) / weight
        (root / f"labels/{task}.csv").write_text(_table(ids, eta, plan))
    (root / "tasks.csv").write_text(
        "task_id,kind,metric\n" + "".join(f"{task},fusion_survival,c_index\n" for task in TASKS)
    )
    (root / "signatures.csv").write_text("\n".join(signature_lines()) + "\n")
    write_store(root / "F", {f"{i}-1": _patches(rng, x, plan) for i, x in zip(ids, a, strict=True)})
    measured = zip(ids[plan.without_rna :], b[plan.without_rna :], strict=True)
    _write_expression(root, rng, dict(measured))
    return {
        "labels": str(root / "labels"),
        "features": (f"enc={root / 'F'}",),
        "cohort": str(root),
        "tasks": tuple(TASKS),
        "cache_dir": str(root / "cache"),
        "out": str(root / "out"),
        "tracking": False,
        "figures": False,
    }


def _patches(rng: np.random.Generator, latent: float, plan: FusionPlan) -> np.ndarray:
    """Rows of which two in five are shifted along the first axis by the latent number."""
    rows = rng.standard_normal((int(rng.integers(*plan.patches)), DIM))
    rows[: int(len(rows) * 0.4), 0] += 2.0 * latent
    return rng.permutation(rows).astype(np.float16)


def _write_expression(root: Path, rng: np.random.Generator, latent: Mapping[str, float]) -> None:
    """An expression store; half of the signal group rises with the latent number, half falls."""
    names = gene_names()
    slopes = np.zeros(len(names))
    first = SIGNAL_GROUP * GENES_PER_GROUP
    slopes[first : first + GENES_PER_GROUP] = np.tile([0.7, -0.7], GENES_PER_GROUP // 2)
    values = 5.0 + np.outer(slopes, list(latent.values()))
    values += rng.standard_normal(values.shape)
    frame = pd.DataFrame(np.expm1(values.clip(min=0)), index=names, columns=list(latent))
    path = root / "rna.tsv"
    frame.to_csv(path, sep="\t", index_label="Hugo_Symbol")
    config = ExpressionConfig(unit="rsem", transform="none")
    preprocess_expression(str(path), str(root / "expression"), config)


def _table(ids: list[str], eta: np.ndarray, plan: FusionPlan) -> str:
    """Exponential deaths, independent exponential censoring of about a third."""
    rng = np.random.default_rng([plan.seed, 1])
    death = rng.exponential(size=len(ids)) * np.exp(-eta) * 24
    gone = rng.exponential(size=len(ids)) * 60
    months, event = np.minimum(death, gone) + 0.05, death <= gone
    cuts = np.cumsum(np.asarray(plan.shares) * len(ids))
    lines = ["case_id,slides,time_months,event,split,data_source"]
    for place, case in enumerate(ids):
        part = ("train", "val", "test")[int(np.searchsorted(cuts, place, side="right"))]
        lines.append(f"{case},{case}-1,{months[place]:.4f},{int(event[place])},{part},generated")
    return "\n".join(lines) + "\n"
