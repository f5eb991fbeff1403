"""The job `mstar ablate`: is it the method that makes the encoder better, or something else?

mstar ablate --out A               every arm on five generated cohorts
mstar ablate quick --out A         one small cohort and three arms

initial encoder, trained on nuisance factors of patients of its own
  ─▶ each seed: cohort, teachers, arms, probes (ablate_seed.py, ablate_settings.py), several units
     at once (ablate_schedule.py)
  ─▶ results.csv, ablation.md, ablation.png
"""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from mstar.cli.ablate_patches import TruthRow, plan_of, read_pixels, read_truth, slides_of
from mstar.cli.ablate_schedule import run_units
from mstar.cli.ablate_seed import RESULTS, read_scores, tidy, write_scores
from mstar.cli.ablate_settings import SeedRun, make_cohort
from mstar.config import to_json
from mstar.data.cases import read_cases
from mstar.pretrain.ablate_arms import ARMS
from mstar.pretrain.ablate_config import AblateConfig
from mstar.pretrain.ablate_report import (
    Score,
    draw,
    initial_auc_fits,
    is_judged,
    summary,
    table,
    verdict,
)
from mstar.pretrain.competent_encoder import NuisanceTraining, train_encoder
from mstar.training.exit_codes import ExitCode

ENCODER_FILE = "encoder.safetensors"


def run(config: AblateConfig) -> int:
    """Run `mstar ablate`; the exit code says whether every promised comparison holds.

    With fewer than five cohorts nothing is judged, and the code says that the arms ran.
    """
    config = replace(config, out=str(Path(config.out).absolute()))
    if config.dry_run:
        print(preview(config))
        return ExitCode.COMPLETE
    began_s = time.monotonic()
    weights = initial_encoder(config)
    scores: list[Score] = []
    for found in all_seeds(config, weights):
        scores += found
        parts = ", ".join(f"{s.arm} {s.auc:.2f}" for s in found if s.probe == "linear")
        say(f"ablate: seed {found[0].seed}: linear probe {parts}")
    scores.sort(key=lambda score: (score.seed, score.arm, score.probe))
    lines = write_report(config, scores)
    say("\n".join(lines))
    say(f"ablate: {time.monotonic() - began_s:,.0f} s; {config.out}/ablation.md, ablation.png")
    holds = all(verdict(scores).values()) and initial_auc_fits(scores, bounds_of(config))
    return ExitCode.COMPLETE if holds or not is_judged(scores) else ExitCode.FAILED


def preview(config: AblateConfig) -> str:
    """What would be done."""
    arms = "\n".join(f"  ({letter}) {ARMS[letter].what}" for letter in config.chosen)
    return (
        f"{to_json(config)}\nablate would compare, on {len(config.seeds)} generated cohorts of "
        f"{config.cases:,} cases and with {config.stage2_steps:,} steps each:\n{arms}\n"
        "Nothing was written."
    )


def initial_encoder(config: AblateConfig) -> str:
    """Train the encoder that every arm starts from, unless it is there; returns its weights."""
    path = Path(config.out) / ENCODER_FILE
    if path.exists():
        return str(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    cohort = make_cohort(
        config,
        str(path.parent / "encoder-cohort"),
        seed=config.encoder_seed,
        cases=config.encoder_cases,
        types=2,
    )
    grids = str(path.parent / "encoder-grids")
    plan = plan_of(cohort, grids, weights="random:0", patch_px=config.patch_px, threads=cores())
    pixels = read_pixels(plan, slides_of(cohort))
    truth = read_truth(cohort)
    case_of = {slide: c.case_id for c in read_cases(f"{cohort}/cases.csv") for slide in c.slides}
    rows = [truth[case_of[slide]] for slide, found in pixels.items() for _ in range(len(found))]
    training = NuisanceTraining(
        steps=config.encoder_steps, lr=config.encoder_lr, seed=config.encoder_seed
    )
    patches = np.concatenate(list(pixels.values()))
    train_encoder(path, patches, nuisance_labels(rows), training, say)
    return str(path)


def nuisance_labels(rows: list[TruthRow]) -> dict[str, np.ndarray]:
    """Factor → class of each patch; nothing of what is planted to be found."""
    names = {
        "cancer_type": [row.cancer_type for row in rows],
        "grade": [str(row.grade) for row in rows],
    }
    return {
        name: np.searchsorted(sorted(set(values)), values).astype(np.int64)
        for name, values in names.items()
    }


def all_seeds(config: AblateConfig, weights: str) -> Iterator[list[Score]]:
    """The scores of each seed as they come; several units of work at once, each on its own core."""
    done, open_runs = {}, []
    workers = config.workers or cores()
    for seed in config.seeds:
        run = SeedRun(config=config, seed=seed, weights=weights, threads=max(1, cores() // workers))
        found = finished_scores(run)
        done.update({seed: found} if found else {})
        open_runs += [] if found else [run]
    yield from done.values()
    for run, scores in run_units(open_runs, workers):
        write_scores(run.folder / RESULTS, scores)
        tidy(run)
        yield scores


def finished_scores(run: SeedRun) -> list[Score]:
    """Those of a seed that an earlier run has finished, if it had all arms that are wanted."""
    path = run.folder / RESULTS
    found = read_scores(path) if path.exists() else []
    return found if set(run.config.chosen) <= {one.arm for one in found} else []


def write_report(config: AblateConfig, scores: list[Score]) -> list[str]:
    """results.csv, ablation.md and ablation.png; returns what was found, a line each."""
    out = Path(config.out)
    write_scores(out / "results.csv", scores)
    lines = summary(scores, bounds=bounds_of(config))
    text = "\n".join(f"- {line}" for line in lines)
    (out / "ablation.md").write_text(
        f"{table(scores)}\n\n{text}\n\n![](ablation.png)\n\n```json\n{to_json(config)}\n```\n"
    )
    draw(scores, out / "ablation.png")
    return lines


def bounds_of(config: AblateConfig) -> tuple[float, float]:
    """Between which areas under the curve the initial encoder is to lie."""
    return config.least_initial_auc, config.most_initial_auc


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)
