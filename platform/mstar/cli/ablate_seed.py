"""One repetition of the ablation: a cohort, its teachers, its arms, and what the probes find.

    prepare   cohort ─▶ features of pretraining cases, a report encoder, held-out pixels
    teach     stage 1 of a teacher ─▶ targets ─▶ shards (pixels with the first teacher's alone)
    score     stage 2 of an arm ─▶ features of held-out cases ─▶ linear probe and ABMIL

What is done is found again: a run that was stopped goes on. `ablate_schedule` says what may run
beside what.
"""

import csv
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64

from mstar.cli.ablate_patches import (
    Features,
    Pixels,
    Shown,
    embed_all,
    encode,
    plan_of,
    read_pixels,
    read_truth,
    slides_of,
)
from mstar.cli.ablate_settings import (
    SeedRun,
    aggregator_config,
    expect,
    make_cohort,
    shuffled_cohort,
    split,
    stage1_config,
    stage2_config,
    targets_config,
)
from mstar.data.cases import read_cases
from mstar.data.reports import read_reports
from mstar.data.splits.registry import read_registry
from mstar.errors import ConfigError
from mstar.features.store import FeatureStore
from mstar.pretrain import stage1, stage2, targets_job
from mstar.pretrain.ablate_arms import ARMS, INITIAL, save_untrained
from mstar.pretrain.ablate_config import AblateConfig
from mstar.pretrain.ablate_probe import PROBES, cross_validated, folds_of
from mstar.pretrain.ablate_report import Score
from mstar.pretrain.small_text_encoder import write_small_text_encoder
from mstar.schema import SlideRef
from mstar.training.seeds import seed_of

RESULTS = "results.csv"
PIXELS = "held-out.npz"


def prepare(run: SeedRun) -> None:
    """The cohort, features of what is pretrained on, and pixels of what the probes will see."""
    if (run.folder / PIXELS).exists():
        return
    config = run.config
    with _at_work(run, "prepare"):
        cohort = make_cohort(
            config, run.at("cohort"), seed=run.seed, cases=config.cases, alone=True
        )
        split(cohort, config.pretrained)
        write_text_encoder(run)
        plan = plan_of(
            cohort,
            run.at("features"),
            weights=run.weights,
            patch_px=config.patch_px,
            threads=run.threads,
        )
        slides = slides_of(cohort)
        kept = held_out_slides(cohort, slides)
        embed_all(plan, [slide for slide in slides if slide not in kept])
        _write_pixels(run, read_pixels(plan, kept, shown=shown_patches(config)))


def teach(run: SeedRun, letter: str) -> None:
    """A teacher and its targets; the first teacher's come with pixels."""
    with _at_work(run, f"teacher-{letter}"):
        make_teacher(run, letter)
        expect(targets_job.run(targets_config(run, letter)), f"targets of {letter}")


def score(run: SeedRun, letter: str) -> list[Score]:
    """An arm, trained, and what the probes find in its features."""
    path = run.folder / f"arm-{letter}" / RESULTS
    if path.exists():
        return read_scores(path)
    with _at_work(run, f"arm-{letter}"):
        encoder = run.weights if letter == INITIAL else train_arm(run, letter)
        features = encode(encoder, _read_pixels(run), threads=run.threads)
        found = [
            Score(seed=run.seed, arm=letter, probe=probe, auc=value)
            for probe, value in evaluate(run, run.at("cohort"), features).items()
        ]
    path.parent.mkdir(exist_ok=True)
    write_scores(path, found)
    return found


def tidy(run: SeedRun) -> None:
    """Delete what was needed on the way, unless it is to be kept."""
    if run.config.keep:
        return
    for name in ("cohort", "features", "cohort-b"):
        shutil.rmtree(run.folder / name, ignore_errors=True)
    for path in (*run.folder.glob("arm-*/shards"), *run.folder.glob("targets-*")):
        shutil.rmtree(path)
    (run.folder / PIXELS).unlink()


def write_text_encoder(run: SeedRun) -> None:
    """A small report encoder whose words are those of the cohort's reports."""
    folder = run.folder / "text-encoder"
    if not folder.exists():
        reports = read_reports(run.at("cohort", "reports.csv"))
        texts = [report.text for report in reports.values()]
        write_small_text_encoder(folder, texts, layers=1, seed=run.seed)


def held_out_slides(cohort: str, slides: list[SlideRef]) -> list[SlideRef]:
    """The slides of the cases that pretraining does not see."""
    seen = read_registry(cohort).pretraining
    cases = read_cases(f"{cohort}/cases.csv")
    kept = {slide for case in cases if case.case_id not in seen for slide in case.slides}
    return [slide for slide in slides if slide.slide_id in kept]


def shown_patches(config: AblateConfig) -> Shown:
    """Which patches of a slide the probes see, draw after draw; the same for all arms."""

    def shown(slide_id: str, num_patches: int) -> Int64[np.ndarray, " shown"]:
        """All draws are of different patches, as long as there are enough."""
        rng = np.random.default_rng(seed_of("probe", slide_id))
        wanted = config.probe_patches * config.probe_draws
        return np.resize(rng.permutation(num_patches), wanted).astype(np.int64)

    return shown


def make_teacher(run: SeedRun, letter: str) -> None:
    """The aggregator of an arm, trained by stage 1 unless the arm wants it untrained."""
    arm, config, cohort = ARMS[letter], run.config, run.at("cohort")
    if not arm.modalities:
        store = FeatureStore.open(run.at("features"))
        save_untrained(
            run.at(f"teacher-{letter}"),
            replace(aggregator_config(config), input_dim=int(store.record.config["dim"])),
            seed=run.seed,
            bag_patches=config.bag_patches,
            features=store.fingerprint,
            splits=read_registry(cohort).digest,
        )
        return
    if arm.shuffled_pairing:
        cohort = shuffled_cohort(run)
    expect(stage1.run(stage1_config(run, letter, arm, cohort)), f"stage 1 of {letter}")


def train_arm(run: SeedRun, letter: str) -> str:
    """Stage 2 of an arm; returns the encoder's weights."""
    expect(stage2.run(stage2_config(run, letter)), f"stage 2 of {letter}")
    return run.at(f"arm-{letter}", "encoder.safetensors")


def evaluate(run: SeedRun, cohort: str, features: Features) -> dict[str, float]:
    """Probe → area under the curve of the planted factor, over held-out cases."""
    config, truth = run.config, read_truth(cohort)
    seen = read_registry(cohort).pretraining
    bags, labels = [], []
    for case in read_cases(f"{cohort}/cases.csv"):
        found = [features[slide] for slide in case.slides if slide in features]
        if found and case.case_id not in seen:
            bags.append(np.concatenate(found))
            labels.append(truth[case.case_id].has(config.factor))
    wanted = np.array(labels)
    fewest = min(int(wanted.sum()), int((~wanted).sum()))
    if fewest < config.folds:
        raise ConfigError(
            f"--cases {config.cases}: expected at least {config.folds} held-out cases (--folds) "
            f"with and without the {config.factor}, got {fewest} of one in the cohort of seed "
            f"{run.seed}. Give more cases, or fewer folds."
        )
    folds = folds_of(wanted, config.folds, seed=run.seed)
    draws = [
        [np.split(bag, config.probe_draws)[draw] for bag in bags]
        for draw in range(config.probe_draws)
    ]
    return {
        name: float(
            np.mean([cross_validated(fit, some, wanted, folds, seed=run.seed) for some in draws])
        )
        for name, fit in PROBES.items()
    }


def write_scores(path: Path, scores: list[Score]) -> None:
    """Scores as a CSV, whole."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(("seed", "arm", "probe", "auc"))
    writer.writerows((s.seed, s.arm, s.probe, f"{s.auc:.6f}") for s in scores)
    path.write_text(sink.getvalue())


def read_scores(path: Path) -> list[Score]:
    """What `write_scores` wrote."""
    with path.open(newline="") as file:
        return [
            Score(seed=int(r["seed"]), arm=r["arm"], probe=r["probe"], auc=float(r["auc"]))
            for r in csv.DictReader(file)
        ]


def _write_pixels(run: SeedRun, pixels: Pixels) -> None:
    made = run.folder / f"{PIXELS}.part"
    with made.open("wb") as file:
        np.savez(file, **pixels)  # type: ignore[arg-type]  # mypy takes them for allow_pickle
    made.rename(run.folder / PIXELS)


def _read_pixels(run: SeedRun) -> Pixels:
    with np.load(run.folder / PIXELS, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


@contextmanager
def _at_work(run: SeedRun, what: str) -> Iterator[None]:
    """What the jobs say goes to seed-N/log-<what>.txt: others of the seed run beside it."""
    torch.set_num_threads(run.threads)
    run.folder.mkdir(parents=True, exist_ok=True)
    path = run.folder / f"log-{what}.txt"
    with path.open("a") as file, redirect_stdout(file), redirect_stderr(file):
        yield
