"""Do text and slides meet after stages 1 and 2? Zero-shot and retrieval on held-out cases.

    PYTHONPATH=tests python tests/benchmarks/language_proof.py OUT [--small] [--docs platform/docs]

A generated cohort is painted, embedded with `texture`, and taken through stage 1, targets and stage
2 by the ordinary jobs; then `mstar sweep` scores zero-shot tasks (cancer type, grade) and the
retrieval of reports and RNA on the cases that no stage saw. Once as it is, and once after every
report and RNA row of the pretraining cases has been given to a random other one. `texture` has no
weights, so stage 2 trains the projection alone: what is shown is the road from patch features to
text, not a better encoder.

After shuffling a class's text still points somewhere, at random but the same way for every case:
the area of one task then lies anywhere around one half, and an interval over patients knows nothing
of that. So zero-shot is also held against all ways to give classes each other's texts, which are at
chance together by construction: as it is, the right naming must stand out from them (over the
tasks, p at most 0.05); shuffled, it must lie within the middle 95 % of them. Retrieval has a match
of its own for every query, and is held against chance directly.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.stage1_proof import SETTINGS, Claim, make_inputs, mark
from mstar.data.cases import Case, read_cases, write_cases
from mstar.data.splits.registry import has_registry, read_registry
from mstar.downstream.prediction_parts import evaluated_parts
from mstar.downstream.predictions import Predictions, read_predictions
from mstar.downstream.statistics.bootstrap import Estimate, fold_estimate
from mstar.pretrain.stage1_config import Stage1Config
from support.serve_sweep import serve

BATCH = 32  # patches of a step of stage 2; `texture` takes 0.1 s a patch
PRETRAINED = 0.65
AS_IT_IS, SHUFFLED = "as-it-is", "shuffled"
ZERO_SHOT = dict.fromkeys(("type", "grade", "mutation"), ("mi_zero", "slide_text"))
RETRIEVAL = ("mi_zero", "slide_text", "slide_rna")
WITHIN = "within_recall_at_5"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of everything.

    slide_px: side of a slide. steps: of stage 2, about one pass. alone: zero-shot tasks that have
    to be above chance each by itself; the others count in what is claimed over all tasks.
    """

    cases: int
    slide_px: int
    epochs: int
    steps: int
    alone: tuple[str, ...]


FULL = Size(cases=480, slide_px=1024, epochs=40, steps=60, alone=tuple(ZERO_SHOT))
# five patches a slide, of which one or two show the mutation: too few to be sure of it
SMALL = Size(cases=240, slide_px=768, epochs=70, steps=24, alone=("type", "grade"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way through both stages, and what its sweep found: (task, method) → predictions."""

    name: str
    found: Mapping[tuple[str, str], Predictions]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--small", action="store_true", help="the size of the test")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--docs", type=Path)
    arguments = parser.parse_args()
    began_s = time.monotonic()
    size = SMALL if arguments.small else FULL
    arms = prove(arguments.out, size, seed=arguments.seed)
    claims = claims_of(arms, size.alone)
    text = "\n".join([*table(arms), "", *(f"- {mark(one)} {one.text}" for one in claims)])
    minutes = (time.monotonic() - began_s) / 60
    print(f"{text}\n\n{minutes:.0f} minutes, {os.cpu_count()} cores")
    if arguments.docs is not None:
        (arguments.docs / "language-proof-table.md").write_text(text + "\n", encoding="utf-8")
    sys.exit(not all(one.holds for one in claims))


def prove(out: Path, size: Size = FULL, *, seed: int = 1) -> list[Arm]:
    """Both arms on one cohort; what is there from a run before is taken up."""
    config = replace(inputs(out, size, seed=seed), epochs=size.epochs, seed=seed)
    cohort = Path(config.cohort)
    if not has_registry(str(cohort)):
        split(cohort)
    write_tasks(out, cohort)
    return [run_arm(out, config, name, steps=size.steps) for name in (AS_IT_IS, SHUFFLED)]


def inputs(out: Path, size: Size, *, seed: int) -> Stage1Config:
    """Cohort, features and report encoder; Ray is started only if slides lack features."""
    from mstar.features.store import FeatureStore
    from mstar.recipes import stage1 as recipes

    cohort, features = out / "cohort", out / "features"
    slides = {slide for one in _cases_of(cohort) for slide in one.slides}
    there = set(FeatureStore.open(str(features)).done_ids()) if features.exists() else set()
    if not slides or not slides <= there or not (out / "text").exists():
        return make_inputs(out, cases=size.cases, seed=seed, slide_px=size.slide_px)
    return replace(
        recipes.laptop(), cohort=str(cohort), features=str(features), text=str(out / "text"),
        out=str(out), tracking=False, **SETTINGS,
    )  # fmt: skip


def _cases_of(cohort: Path) -> list[Case]:
    return read_cases(str(cohort / "cases.csv")) if (cohort / "cases.csv").exists() else []


def split(cohort: Path) -> None:
    """Two thirds of the patients are pretrained on, the others are tested."""
    from mstar.cohorts import split_job
    from mstar.cohorts.split_config import SplitConfig
    from mstar.data.splits.preset import PresetConfig

    ratio = (PRETRAINED, 0.0, 1 - PRETRAINED)
    settings = PresetConfig(cohorts="all", min_cases=0, ratio=ratio)
    config = SplitConfig(cohort=str(cohort), preset="mstar", settings=settings, tasks=("none",))
    assert split_job.run(config) == 0


def write_tasks(out: Path, cohort: Path) -> None:
    """Own rows, label tables and prompts; the prompts are the phrases that no report is without."""
    from mstar.cohorts.generated.grammar import CANCER_TYPE_PHRASES, FINDINGS

    cases = [case for case in read_cases(str(cohort / "cases.csv")) if case.slides]
    truth = read_truth(cohort)
    types = sorted({case.cancer_type for case in cases})
    classes = {
        "type": {name: list(CANCER_TYPE_PHRASES[name]) for name in types},
        "grade": {
            f"grade{at + 1}": [text.rstrip(".") for text in own]
            for at, own in enumerate(FINDINGS["grade"])
        },
        "mutation": {
            name: [text.rstrip(".") for text in own]
            for name, own in zip(("wildtype", "mutated"), FINDINGS["mutation"], strict=True)
        },
    }
    rows = ["task_id,kind,metric,classes,split_policy"]
    rows += [f"{n},zero_shot,macro_auc,{'|'.join(own)},test_fold" for n, own in classes.items()]
    rows += ["pairs,retrieval,recall_at_k,,test_fold"]
    (out / "own.csv").write_text("\n".join(rows) + "\n")
    labels, prompts = out / "labels", out / "prompts"
    labels.mkdir(exist_ok=True)
    prompts.mkdir(exist_ok=True)
    for name, own in classes.items():
        said = {"classes": own, "templates": ["CLASSNAME.", "Diagnosis: CLASSNAME.", "CLASSNAME"]}
        (prompts / f"{name}.json").write_text(json.dumps(said))
    of_case = {
        "type": {case.case_id: case.cancer_type for case in cases},
        "grade": {case.case_id: f"grade{truth[case.case_id]['grade']}" for case in cases},
        "mutation": {
            case.case_id: ("wildtype", "mutated")[int(truth[case.case_id]["mutation"])]
            for case in cases
        },
        "pairs": {case.case_id: case.case_id for case in cases},
    }
    for name, told in of_case.items():
        lines = ["case_id,slides,label,data_source"]
        lines += [f"{c.case_id},{';'.join(c.slides)},{told[c.case_id]},generated" for c in cases]
        (labels / f"{name}.csv").write_text("\n".join(lines) + "\n")


def read_truth(cohort: Path) -> dict[str, dict[str, str]]:
    """Case → its factors."""
    import csv

    with (cohort / "truth" / "cases.csv").open(newline="") as file:
        return {row["case_id"]: row for row in csv.DictReader(file)}


def run_arm(out: Path, config: Stage1Config, name: str, *, steps: int) -> Arm:
    """Both stages (`steps` of the second) and the sweep of an arm."""
    from mstar.downstream.sweep_config import SweepConfig
    from mstar.pretrain import stage1, stage2, targets_job
    from mstar.recipes import stage2 as stage2_recipes
    from mstar.recipes import targets as targets_recipes

    folder = out / name
    cohort = shuffled(Path(config.cohort), config.seed) if name == SHUFFLED else config.cohort
    one = replace(
        config, cohort=cohort, out=str(folder / "stage1"), val_fraction=0.0,
        validate_every_epochs=0, checkpoint_every_epochs=config.epochs, patience=0,
    )  # fmt: skip
    assert stage1.run(one) == 0
    targets = targets_recipes.laptop()
    targets = replace(
        targets, cohort=cohort, features=config.features, aggregator=one.out,
        out=str(folder / "targets"), run=replace(targets.run, tracking=False),
    )  # fmt: skip
    assert targets_job.run(targets) == 0
    assert stage2.run(replace(
        stage2_recipes.laptop(), shards=targets.out, weights="built-in", out=str(folder / "stage2"),
        lr_projection=1e-2, epochs=10_000, max_steps=steps, batch_patches=BATCH,
        micro_batch=BATCH, lanes=8, watch_every_steps=0, checkpoint_every_steps=0,
        log_every_steps=20, model_name="", tracking=False,
    )) == 0  # fmt: skip
    swept = SweepConfig(
        labels=str(out / "labels"), features=(f"texture={config.features}",),
        own=(str(out / "own.csv"),), tasks=(*ZERO_SHOT, "pairs"), methods=("all",),
        cohort=config.cohort, stage1=one.out, stage2=str(folder / "stage2"),
        prompts=str(out / "prompts"), out=str(folder / "R"), tracking=False, figures=False,
        cache_dir=str(out / "cache"),
    )  # fmt: skip
    assert serve(swept).finished
    methods = {**ZERO_SHOT, "pairs": RETRIEVAL}
    found = {
        (task, method): read_predictions(
            f"{folder}/R/{task}/texture/{method}/predictions-test.parquet"
        )
        for task, own in methods.items()
        for method in own
    }
    arm = Arm(name=name, found=found)
    print("\n".join(table([arm])), flush=True)
    return arm


def shuffled(cohort: Path, seed: int) -> str:
    """A cohort beside the given one: pretraining cases have the report and RNA of random others."""
    other = cohort.with_name(cohort.name + "-handed-round")
    other.mkdir(exist_ok=True)
    for path in cohort.iterdir():
        if path.name != "cases.csv" and not (other / path.name).exists():
            (other / path.name).symlink_to(path.absolute())
    seen = read_registry(str(cohort)).pretraining
    cases = read_cases(str(cohort / "cases.csv"))
    rng = np.random.default_rng([seed, 11])
    changed = {case.case_id: case for case in cases}
    for name in ("report", "rna"):
        holders = [c.case_id for c in cases if c.case_id in seen and getattr(c, name) is not None]
        keys = [getattr(changed[case_id], name) for case_id in holders]
        for case_id, place in zip(holders, rng.permutation(len(keys)), strict=True):
            changed[case_id] = replace(changed[case_id], **{name: keys[place]})
    write_cases(str(other / "cases.csv"), [changed[case.case_id] for case in cases])
    return str(other)


def estimate(found: Predictions, metric: str) -> Estimate:
    """A metric with its interval over patients."""
    return fold_estimate(metric, evaluated_parts(found))


def chance_of(found: Predictions, metric: str) -> float:
    """What scores that know nothing would have."""
    if metric == "macro_auc":
        return 0.5
    if metric == "balanced_accuracy":
        return 1 / len(found.facts.class_names)
    return float(found.facts.extra["yardsticks"][metric.replace("within_", "type_")])


def claims_of(arms: Sequence[Arm], alone: Sequence[str] = tuple(ZERO_SHOT)) -> list[Claim]:
    """What must hold; `alone` as in `Size`."""
    return [claim for arm in arms for claim in (*_claims(arm, alone), *_naming_claims(arm))]


def _claims(arm: Arm, alone: Sequence[str]) -> Iterator[Claim]:
    for (task, method), found in arm.found.items():
        metric = WITHIN if task == "pairs" else "macro_auc"
        one, chance = estimate(found, metric), chance_of(found, metric)
        what = f"{arm.name}: {task}, {method}: {metric} {show(one)}, chance {chance:.2f}"
        if arm.name == AS_IT_IS and task in (*alone, "pairs"):
            yield Claim(text=f"{what}: above chance", holds=one.low > chance)
        elif arm.name == SHUFFLED and task == "pairs":
            yield Claim(text=f"{what}: no better than chance", holds=one.low <= chance)


def _naming_claims(arm: Arm) -> Iterator[Claim]:
    """The right naming of the classes among all namings, over the zero-shot tasks."""
    for method in ("mi_zero", "slide_text"):
        own, drawn = namings([arm.found[task, method] for task in ZERO_SHOT])
        low, high = np.quantile(drawn, [0.025, 0.975])
        p = float(np.mean(drawn >= own - 1e-9))
        what = (
            f"{arm.name}: zero-shot over tasks, {method}: mean area {own:.2f}; all {len(drawn)} "
            f"namings: middle 95 % [{low:.2f}, {high:.2f}], p {p:.3f}"
        )
        if arm.name == AS_IT_IS:
            yield Claim(text=f"{what}: the right one stands out", holds=p <= 0.05)
        else:
            yield Claim(text=f"{what}: the right one is as any", holds=low <= own <= high)


def namings(tasks: Sequence[Predictions]) -> tuple[float, np.ndarray]:
    """The mean area over tasks as the classes are named, and of every combination of namings."""
    per_task = []
    for found in tasks:
        codes = range(len(found.facts.class_names))
        areas = np.array([[_area(found, label, column) for column in codes] for label in codes])
        ways = permutations(codes)
        per_task.append([float(np.mean([areas[c, to[c]] for c in codes])) for to in ways])
    combined = np.array([np.mean(own) for own in product(*per_task)])
    return float(combined[0]), combined  # the first permutation changes nothing


def _area(found: Predictions, label: int, column: int) -> float:
    """The area with which a column of scores tells a class from the others; ties count half."""
    scores, own = found.scores[:, column], found.label == label
    ranks = rankdata(scores)
    size, others = int(own.sum()), int((~own).sum())
    return float((ranks[own].sum() - size * (size + 1) / 2) / (size * others))


def show(one: Estimate) -> str:
    """A value with its interval."""
    return f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]"


def table(arms: Sequence[Arm]) -> list[str]:
    """Markdown, a line per arm, task and method."""
    lines = [
        "| arm | task | method | cases | metric | value | chance |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in arms:
        for (task, method), found in arm.found.items():
            metrics: tuple[str, ...] = ("macro_auc", "balanced_accuracy")
            if task == "pairs":
                metrics = (WITHIN, f"{WITHIN}_first", f"{WITHIN}_back")
            for metric in metrics:
                one = estimate(found, metric)
                plain = metric.removesuffix("_first").removesuffix("_back")
                lines.append(
                    f"| {arm.name} | {task} | {method} | {one.patients} | {metric} | {show(one)} "
                    f"| {chance_of(found, plain):.2f} |"
                )
    return lines


if __name__ == "__main__":
    main()
