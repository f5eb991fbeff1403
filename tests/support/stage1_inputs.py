"""A small cohort for stage-1 tests in a second or two: no slides, no embedding, a planted truth.

A case has a cancer type and a few hidden factors. The factors show in every modality: as directions
in its patches' features, as words of its report, as groups of genes. The files are written through
the platform's own writers, so that a reader sees what `mstar cohort` and `mstar embed` would leave.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mstar.data.cases import Case, write_cases
from mstar.data.reports import Report, write_reports
from mstar.data.rna.config import ExpressionConfig
from mstar.data.rna.store_writer import StoreWriter
from mstar.data.rna.summary import ExpressionSummary
from mstar.features.store import FeatureStore
from support.feature_files import CONFIG, toy_grid, toy_provenance
from support.tiny_bert import write_tiny_bert

FACTORS, LEVELS = 4, 5
GENES_PER_FACTOR, OTHER_GENES = 12, 20
CANCERS = ("BRCA", "COAD", "KIRC", "LUAD", "SKCM", "STAD")
TINY = (
    "--batch-cases 16 --chunk-cases 8 --epochs 2 --bag-patches 32 --max-tokens 32 "
    "--val-fraction 0.25 --no-tracking "
    "--aggregator.dim 32 --aggregator.heads 2 --aggregator.landmarks 8 "
    "--gene.dim 16 --gene.heads 2 --gene.head-dim 8 --gene.random-features 16"
)
FILLER = ("specimen", "received", "fresh", "margin", "clear", "sections", "submitted", "review")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage1Inputs:
    """Where the inputs of `mstar stage1` lie: cohort folder, feature store, report encoder."""

    cohort: Path
    features: Path
    text: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantedCase:
    """A case and what is hidden in it.

    cancer: index of its type. levels: one of LEVELS for every factor.
    """

    case: Case
    cancer: int
    levels: np.ndarray


def write_stage1_inputs(
    folder: Path,
    *,
    cases: int = 60,
    seed: int = 0,
    dim: int = 32,
    patches: tuple[int, int] = (20, 60),
    cancers: int = 3,
    missing: float = 0.1,
) -> Stage1Inputs:
    """Write a cohort, its features and a tiny BERT.

    Every third case has two slides. Each modality is missing for `missing` of the cases, and no
    case lacks two. Equal arguments give equal bytes; cases do not depend on how many there are.

    Args:
        folder: where to.
        cases: how many; case i is `GEN-S00-00000i`.
        seed: of all that is drawn.
        dim: length of a patch's features.
        patches: fewest and most patches of a slide.
        cancers: cancer types, at most six; they take turns.
        missing: share of the cases without slides, of those without report, of those without RNA.
    """
    made = Stage1Inputs(cohort=folder / "c", features=folder / "f", text=folder / "bert")
    planted = plant(cases=cases, seed=seed, cancers=cancers, missing=missing)
    write_cases(str(made.cohort / "cases.csv"), [one.case for one in planted])
    reports = {one.case.case_id: Report(text=report_text(one, seed)) for one in planted}
    has_report = {one.case.case_id for one in planted if one.case.report}
    write_reports(
        str(made.cohort / "reports.csv"), {k: r for k, r in reports.items() if k in has_report}
    )
    expression = {
        one.case.case_id: expression_row(one, seed) for one in planted if one.case.rna is not None
    }
    write_expression(made.cohort / "expression", expression)
    write_features(made.features, planted, seed=seed, dim=dim, patches=patches)
    words = [word for report in reports.values() for word in report.text.split()]
    write_tiny_bert(made.text, words, hidden=32, layers=1, seed=seed, max_positions=64)
    return made


def stage1_args(inputs: Stage1Inputs, out: Path | str, *flags: str) -> list[str]:
    """The command line of a run of seconds: `mstar` with these; later flags win.

    Nothing is tracked unless the flags say `--tracking`.
    """
    where = ["--cohort", str(inputs.cohort), "--features", str(inputs.features)]
    where += ["--text", str(inputs.text), "--out", str(out)]
    # later flags take the place of earlier ones, which tyro would refuse to see twice
    merged: dict[str, list[str]] = {}
    name = ""
    for word in [*where, *TINY.split(), *flags]:
        if word.startswith("--"):
            name = word
            merged[name] = []
        else:
            merged[name].append(word)
    if merged.pop("--tracking", None) is not None:  # the default has no flag of its own
        merged.pop("--no-tracking")
    return [
        "stage1",
        "laptop",
        *(word for key, values in merged.items() for word in (key, *values)),
    ]


def losses_of(out: Path) -> dict[int, float]:
    """Loss by step as `steps.jsonl` says; the last line of a step counts."""
    rows = [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def facts_of(out: Path) -> dict[str, Any]:
    """What `stage1.json` says of a run."""
    facts: dict[str, Any] = json.loads((out / "stage1.json").read_text())
    return facts


def plant(*, cases: int, seed: int, cancers: int, missing: float) -> list[PlantedCase]:
    """The cases, their types, factors and modalities."""
    assert 0 <= missing <= 1 / 3
    planted = []
    turn = round(1 / missing) if missing else 0
    for number in range(cases):
        rng = np.random.default_rng([seed, number, 0])
        # cases i, i+1, i+2 of every `turn` lack one modality each, so none lacks two
        lacks = {0: "wsi", 1: "text", 2: "gene"}.get(number % turn, "") if turn else ""
        case_id = f"GEN-S00-{number:06d}"
        slides = tuple(f"{case_id}-{k + 1}" for k in range(2 if number % 3 == 0 else 1))
        case = Case(
            case_id=case_id,
            cancer_type=CANCERS[number % cancers],
            slides=() if lacks == "wsi" else slides,
            report=None if lacks == "text" else case_id,
            rna=None if lacks == "gene" else case_id,
        )
        levels = rng.integers(0, LEVELS, FACTORS)
        planted.append(PlantedCase(case=case, cancer=number % cancers, levels=levels))
    return planted


def report_text(one: PlantedCase, seed: int) -> str:
    """A word for the type, one for every factor's level, and filler between them."""
    rng = np.random.default_rng([seed, int(one.case.case_id[-6:]), 1])
    told = [f"tumour{one.cancer}", *(f"factor{k}level{v}" for k, v in enumerate(one.levels))]
    return " ".join(f"{word} {rng.choice(FILLER)}" for word in told)


def expression_row(one: PlantedCase, seed: int) -> np.ndarray:
    """Values as the store holds them: a group of genes per factor, one for the types, the rest."""
    rng = np.random.default_rng([seed, int(one.case.case_id[-6:]), 2])
    by_factor = np.repeat(one.levels, GENES_PER_FACTOR) + 0.5
    by_type = np.where(np.arange(len(CANCERS)) == one.cancer, 5.0, 0.0)
    other = rng.uniform(0, 5, OTHER_GENES)
    values = np.concatenate([by_factor, by_type, other])
    return np.maximum(values + rng.normal(0, 0.2, len(values)), 0).astype(np.float32)


def write_expression(folder: Path, rows: Mapping[str, np.ndarray]) -> None:
    """An expression store of these rows; rows of zeros are counted as such."""
    ids = list(rows)
    num_genes = len(next(iter(rows.values())))
    counts = dict.fromkeys(
        (
            "num_samples_left_out",
            "num_rows_outside_vocabulary",
            "num_repeated_rows",
            "num_unnamed_rows",
            "num_counter_rows",
            "num_missing_cells",
            "num_negative_cells",
        ),
        0,
    )
    summary = ExpressionSummary(
        unit="rsem",
        transform="none",
        vocabulary="tables",
        num_cases=len(ids),
        num_samples=len(ids),
        num_genes=num_genes,
        num_source_rows=num_genes,
        zero_cases=tuple(case_id for case_id, row in rows.items() if not row.any()),
        **counts,
    )
    genes = [f"GENE{k}" for k in range(num_genes)]
    with StoreWriter(str(folder), ids, genes) as writer:
        for case_id, row in rows.items():
            writer.write([case_id], row[None].astype(np.float32))
        writer.finish(summary, ExpressionConfig(), None)


def write_features(
    folder: Path, planted: list[PlantedCase], *, seed: int, dim: int, patches: tuple[int, int]
) -> None:
    """A feature store: every patch shows the type; each factor shows in a share of the patches."""
    store = FeatureStore.open_or_create(str(folder), {**CONFIG, "dim": dim})
    directions = np.random.default_rng([seed, 10**6]).normal(0, 1, (len(CANCERS) + FACTORS, dim))
    for one in planted:
        rng = np.random.default_rng([seed, int(one.case.case_id[-6:]), 3])
        for slide_id in one.case.slides:
            num = int(rng.integers(patches[0], patches[1] + 1))
            shown = rng.integers(0, FACTORS, num)  # the factor that a patch shows
            strength = (one.levels[shown] - (LEVELS - 1) / 2)[:, None]
            values = directions[one.cancer] + strength * directions[len(CANCERS) + shown]
            values = (values + rng.normal(0, 0.3, (num, dim))).astype(np.float16)
            write_slide_features(store, slide_id, values)


def write_slide_features(store: FeatureStore, slide_id: str, values: np.ndarray) -> None:
    """One slide's features; any number of rows, any values."""
    provenance = toy_provenance(fingerprint=store.fingerprint)
    assert store.write(slide_id, toy_grid(slide_id, num=len(values)), values, provenance)
