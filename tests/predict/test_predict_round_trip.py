"""The demo's cohort, embedded and swept on Ray, less two cases; these are then new slides."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from mstar.cli.demo_cohort import split_config
from mstar.cohorts import generate, split_job
from mstar.cohorts.generated.config import GenerateConfig
from mstar.downstream import sweep
from mstar.downstream.predictions import read_predictions
from mstar.downstream.sweep_config import SweepConfig
from mstar.embed import job as embed_job
from mstar.embed.config import RunConfig
from mstar.predict import job
from mstar.predict.config import PredictConfig
from mstar.recipes import embed as embed_recipes
from mstar.schema import RESEARCH_ONLY

pytestmark = [pytest.mark.ray, pytest.mark.slow]

HEADS = ("abmil", "clam_sb", "transmil", "linear")
TASK, LEFT_OUT = "planted_mutation", "left_out"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def leave_out(cohort: Path, cases: set[str]) -> None:
    """Take cases out of cohort and task, into a task of their own that its models are tested on."""
    cases_file = cohort / "cases.csv"
    kept = [
        line
        for line in cases_file.read_text().splitlines(True)
        if not any(case in line for case in cases)
    ]
    cases_file.write_text("".join(kept))
    table = cohort / "labels" / f"{TASK}.csv"
    rows = rows_of(table)
    for name, chosen in ((TASK, False), (LEFT_OUT, True)):
        with (cohort / "labels" / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(row for row in rows if (row["case_id"] in cases) == chosen)
    tasks = rows_of(cohort / "tasks.csv")
    own = next(row for row in tasks if row["task_id"] == TASK)
    external = own | {"task_id": LEFT_OUT, "regime": "external", "trained_on": TASK}
    with (cohort / "tasks.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(external), restval="")
        writer.writeheader()
        writer.writerows([*tasks, external])


def test_a_new_slide_has_the_score_that_a_sweep_gives_it(local_ray: None, tmp_path: Path) -> None:
    """To the bit, from its pixels; and so have the slides of the sweep's test part."""
    cohort, features = tmp_path / "C", tmp_path / "F"
    assert generate.run(GenerateConfig(out=str(cohort), cases=24, seed=1, slide_px=1100)) == 0
    slides_of = {
        row["case_id"]: row["slides"] for row in rows_of(cohort / "labels" / f"{TASK}.csv")
    }
    told = {row["case_id"]: row["label"] for row in rows_of(cohort / "labels" / f"{TASK}.csv")}
    new = {next(case for case in told if told[case] == name) for name in ("wildtype", "mutated")}
    leave_out(cohort, new)
    assert split_job.run(split_config(cohort)) == 0
    debug = replace(embed_recipes.debug(), slides=str(cohort / "slides.csv"), out=str(features))
    embed = replace(debug, run=replace(debug.run, tracking=False))
    assert embed_job.run(embed) == 0
    config = SweepConfig(
        labels=str(cohort / "labels"), cohort=str(cohort), features=(f"enc={features}",),
        tasks=(TASK, LEFT_OUT), heads=HEADS,
        out=str(tmp_path / "R"), tracking=False, figures=False,
    )  # fmt: skip
    assert sweep.run(config) == 0
    for head in HEADS:
        folder = tmp_path / "R" / TASK / "enc" / head
        inside = read_predictions(str(folder / "predictions-test.parquet"))
        outside = read_predictions(
            str(tmp_path / "R" / LEFT_OUT / "enc" / head / "predictions-external.parquet")
        )
        assert set(outside.case_id) == new
        assert not new & set(inside.case_id)
        manifest = tmp_path / f"{head}.csv"
        wanted = {slide for found in (inside, outside) for own in found.slides for slide in own}
        lines = [
            f"{cohort}/slides/{slide}.svs,{slide},{case}"
            for case, text in slides_of.items()
            for slide in text.split(";")
            if slide in wanted
        ]
        manifest.write_text("path,slide_id,case_id\n" + "\n".join(lines) + "\n")
        asked = PredictConfig(
            model=str(folder), slides=str(manifest), out=str(tmp_path / "P"), unit="case",
            encoder=embed.encoder, weights=embed.weights, device="cpu", where="here",
            run=RunConfig(tracking=False),
        )  # fmt: skip
        assert job.run(asked) == 0
        rows = {row["case_id"]: row for row in rows_of(tmp_path / "P" / "predictions.csv")}
        for found in (inside, outside):
            assert len(found.runs()) == 1
            for case, scores in zip(found.case_id, found.scores, strict=True):
                names = found.facts.class_names
                said = [float(rows[case][f"score_{name}"]) for name in names]
                assert said == scores.tolist(), (head, case)
                assert rows[case]["warning"] == RESEARCH_ONLY
