"""Does stage 1 find a held-out case's report and RNA from its slide? The whole way, on pixels.

    python tests/benchmarks/stage1_proof.py OUT [--cases N] [--epochs N] [--docs platform/docs]

A generated cohort with a known truth is painted, its slides are embedded with `texture`, and stage
1 is trained on a part of the cases and measured on the others: as it is, with reports and RNA
handed round among the cases of each cancer type, and with one modality or the triplet loss left
out, which is reported and claims nothing. Every run is measured once, after its last step, so
nothing is selected on the held-out cases.
Prints a table; --docs also writes it, and its picture, there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from mstar.data.cases import Case, read_cases, write_cases
from mstar.pretrain import stage1
from mstar.pretrain.stage1_config import Stage1Config

DIRECTIONS = ("wsi_to_text", "wsi_to_gene", "text_to_gene")
NAMES = {"wsi": "slide", "text": "report", "gene": "RNA"}
CASES, EPOCHS = 480, 40
CLAIMED = {"as it is", "pairs shuffled within type"}
WITHIN_K, OVERALL_K = 5, 10
FEWEST_QUERIES = 120
Found = Mapping[str, Mapping[str, Any]]  # direction → retrieval, as in stage1.json


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run: what is changed of the settings, and whether pairs are shuffled before."""

    name: str
    change: Mapping[str, Any] = field(default_factory=dict)
    shuffled: bool = False


TRIALS = (
    Trial(name="as it is"),
    Trial(name="pairs shuffled within type", shuffled=True),
    Trial(name="without RNA", change={"modalities": "wsi,text"}),
    Trial(name="without reports", change={"modalities": "wsi,gene"}),
    Trial(name="without triplet loss", change={"triplet_weight": 0.0}),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Something that must hold, and whether it does."""

    text: str
    holds: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seed", type=int, default=1, help="0 was used to choose settings")
    parser.add_argument("--docs", type=Path)
    arguments = parser.parse_args()
    began_s = time.monotonic()
    found = prove(
        arguments.out, cases=arguments.cases, epochs=arguments.epochs, seed=arguments.seed
    )
    claims = [*claims_of(found), *gallery_claims(found["as it is"])]
    text = "\n".join([*table(found), "", *(f"- {mark(one)} {one.text}" for one in claims)])
    minutes = (time.monotonic() - began_s) / 60
    print(f"{text}\n\n{minutes:.0f} minutes, {os.cpu_count()} cores")
    if arguments.docs is not None:
        (arguments.docs / "stage1-proof-table.md").write_text(text + "\n", encoding="utf-8")
        picture(found, arguments.docs / "stage1-proof.png")
    sys.exit(not all(one.holds for one in claims))


def prove(
    out: Path, *, cases: int = CASES, epochs: int = EPOCHS, seed: int = 1
) -> dict[str, Found]:
    """All trials on one cohort; what is there from a run before is taken up."""
    config = replace(make_inputs(out, cases=cases, seed=seed), epochs=epochs, seed=seed)
    return {trial.name: run_trial(config, trial, out) for trial in TRIALS}


def make_inputs(out: Path, *, cases: int, seed: int, **painted: Any) -> Stage1Config:
    """A painted cohort, its slides embedded by the ordinary job, a small report encoder.

    `painted`: what differs from COHORT.
    """
    from mstar.cohorts import generate
    from mstar.cohorts.generated.config import GenerateConfig
    from mstar.data.reports import read_reports
    from mstar.embed import job
    from mstar.embed.config import RunConfig
    from mstar.pretrain.small_text_encoder import write_small_text_encoder
    from mstar.recipes import embed
    from mstar.recipes import stage1 as recipes
    from mstar.training.cluster import ray_session

    cohort, features, text = out / "cohort", out / "features", out / "text"
    if not (cohort / "cohort.json").exists():
        made = generate.run(
            GenerateConfig(out=str(cohort), cases=cases, seed=seed, **COHORT | painted)
        )
        assert made == 0
    if not (text / "config.json").exists():
        reports = read_reports(str(cohort / "reports.csv"))
        write_small_text_encoder(
            text, [report.text for report in reports.values()], layers=1, heads=2, seed=seed
        )
    with ray_session():
        made = job.run(replace(
            embed.debug(), slides=str(cohort / "slides.csv"), out=str(features),
            encoder="texture", weights=None, run=RunConfig(workers=1, tracking=False),
        ))  # fmt: skip
        assert made == 0
    return replace(
        recipes.laptop(), cohort=str(cohort), features=str(features), text=str(text), out=str(out),
        val_fraction=0.3, tracking=False, **SETTINGS,
    )  # fmt: skip


# No site effect: stain and RNA batch of a hospital would be a second thing that pairs share.
COHORT: dict[str, Any] = {
    "slide_px": 1024,
    "slides_per_case_max": 1,
    "num_genes": 260,
    "missing_report": 0.03,
    "missing_rna": 0.03,
    "site_effect": 0.0,
    "noise": 0.5,
    "rna_strength": 3.0,
    "pen_fraction": 0.0,
    "fold_fraction": 0.0,
}
SETTINGS: dict[str, Any] = {
    "chunk_cases": 64,
    "bag_patches": 16,
    "max_tokens": 448,
    "binning": "quantile",
    "num_bins": 16,
}


def run_trial(config: Stage1Config, trial: Trial, out: Path) -> Found:
    """Train, measure the held-out cases after the last step, and return what stage1.json says."""
    change = dict(trial.change)
    triplet = change.pop("triplet_weight", config.loss.triplet_weight)
    config = replace(
        config,
        out=str(out / trial.name.replace(" ", "-")),
        cohort=shuffle_pairs(Path(config.cohort), config.seed) if trial.shuffled else config.cohort,
        loss=replace(config.loss, triplet_weight=triplet),
        validate_every_epochs=config.epochs,
        checkpoint_every_epochs=config.epochs,
        patience=0,
        **change,
    )
    assert stage1.run(config) == 0
    facts = json.loads((Path(config.out) / "stage1.json").read_text(encoding="utf-8"))
    assert facts["complete"]
    found: Found = facts["retrieval"]
    return found


def shuffle_pairs(cohort: Path, seed: int) -> str:
    """A cohort beside the given one where reports and RNA are another case's of the same type."""
    other = cohort.with_name(cohort.name + "-shuffled")
    other.mkdir(exist_ok=True)
    for path in cohort.iterdir():
        if path.name != "cases.csv" and not (other / path.name).exists():
            (other / path.name).symlink_to(path.absolute())
    cases, rng = read_cases(str(cohort / "cases.csv")), np.random.default_rng([seed, 7])
    write_cases(str(other / "cases.csv"), handed_round(cases, rng))
    return str(other)


def handed_round(cases: Sequence[Case], rng: np.random.Generator) -> list[Case]:
    """Every report and every RNA row goes to a random case of its type that had one."""
    changed = {case.case_id: case for case in cases}
    for cancer in sorted({case.cancer_type for case in cases}):
        for name in ("report", "rna"):
            holders = [
                case.case_id
                for case in cases
                if case.cancer_type == cancer and getattr(case, name) is not None
            ]
            keys = [getattr(changed[case_id], name) for case_id in holders]
            for case_id, place in zip(holders, rng.permutation(len(keys)), strict=True):
                changed[case_id] = replace(changed[case_id], **{name: keys[place]})
    return [changed[case.case_id] for case in cases]


def recall(found: Found, direction: str, where: str, k: int) -> Mapping[str, float]:
    """One recall with interval and yardsticks."""
    (one,) = [one for one in found[direction][where] if one["k"] == k]
    return one  # type: ignore[no-any-return]


def claims_of(found: Mapping[str, Found]) -> list[Claim]:
    """What must hold of the method and of its control; other runs are reported as they come out."""
    return [claim for name in found if name in CLAIMED for claim in _claims(name, found[name])]


def _claims(name: str, found: Found) -> Iterator[Claim]:
    shuffled = "shuffled" in name
    for direction in (d for d in DIRECTIONS[:2] if d in found):
        within = recall(found, direction, "within", WITHIN_K)
        overall = recall(found, direction, "overall", OVERALL_K)
        way = arrow(direction)
        if shuffled:
            yield Claim(
                text=f"{name}: {way} within type is back at chance: {WITHIN_K} of {show(within)}",
                holds=within["low"] <= within["chance"],
            )
            yield Claim(
                text=f"{name}: {way} overall is no better than the type: {show(overall)}",
                holds=overall["low"] <= overall["ceiling"],
            )
        else:
            yield Claim(
                text=f"{name}: {way} within type beats chance: {show(within)}",
                holds=within["low"] > within["chance"],
            )
            yield Claim(
                text=f"{name}: {way} overall beats a model that knows the type: {show(overall)}",
                holds=overall["low"] > overall["ceiling"],
            )


def gallery_claims(found: Found) -> list[Claim]:
    """The galleries are as large as asked for."""
    sizes = {arrow(d): found[d]["num_queries"] for d in DIRECTIONS[:2] if d in found}
    text = ", ".join(f"{way} {size}" for way, size in sizes.items())
    return [Claim(text=f"held-out cases: {text}", holds=min(sizes.values()) >= FEWEST_QUERIES)]


def arrow(direction: str) -> str:
    """`wsi_to_text` as `slide → report`."""
    return " → ".join(NAMES[name] for name in direction.split("_to_"))


def show(one: Mapping[str, float]) -> str:
    """A recall, its interval, its yardsticks."""
    return (
        f"R@{one['k']} {one['value']:.2f} [{one['low']:.2f}, {one['high']:.2f}], "
        f"chance {one['chance']:.2f}, type alone {one['ceiling']:.2f}"
    )


def mark(claim: Claim) -> str:
    """Whether it holds, in a word."""
    return "holds:" if claim.holds else "DOES NOT HOLD:"


def table(found: Mapping[str, Found]) -> list[str]:
    """Markdown, a line per run and direction."""
    lines = [
        f"| run | direction | cases | R@{WITHIN_K} within type | chance "
        f"| R@{OVERALL_K} overall | type alone | chance | median rank |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        for direction in (d for d in DIRECTIONS if d in one):
            within = recall(one, direction, "within", WITHIN_K)
            overall = recall(one, direction, "overall", OVERALL_K)
            lines.append(
                f"| {name} | {arrow(direction)} | {one[direction]['num_queries']} "
                f"| **{within['value']:.2f}** [{within['low']:.2f}, {within['high']:.2f}] "
                f"| {within['chance']:.2f} "
                f"| **{overall['value']:.2f}** [{overall['low']:.2f}, {overall['high']:.2f}] "
                f"| {overall['ceiling']:.2f} | {overall['chance']:.2f} "
                f"| {one[direction]['median_rank']:.0f} |"
            )
    return lines


def picture(found: Mapping[str, Found], path: Path) -> None:
    """Recalls with intervals beside their yardsticks, within type and overall."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [(name, d) for name, one in found.items() for d in DIRECTIONS[:2] if d in one]
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.42 * len(rows) + 1.4), sharey=True)
    panels = (("within", WITHIN_K, "chance"), ("overall", OVERALL_K, "ceiling"))
    for axis, (where, k, yardstick) in zip(axes, panels, strict=True):
        for place, (name, direction) in enumerate(rows):
            one = recall(found[name], direction, where, k)
            colour = "tab:grey" if "shuffled" in name else "tab:blue"
            axis.plot([one["low"], one["high"]], [place, place], color=colour, linewidth=2)
            axis.plot(one["value"], place, "o", color=colour)
            axis.plot([one[yardstick]] * 2, [place - 0.35, place + 0.35], color="tab:red")
        axis.set_xlim(0, 1)
        axis.set_title({
            "within": f"R@{k} within cancer type (red: chance)",
            "overall": f"R@{k} over all held-out cases (red: type alone)",
        }[where], fontsize=10)  # fmt: skip
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(rows)), [f"{name}: {arrow(d)}" for name, d in rows], fontsize=9)
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
