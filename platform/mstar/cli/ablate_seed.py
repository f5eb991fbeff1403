"""One repetition of the ablation: a cohort, its teachers, its arms, and what the probes find.

    cohort ─▶ features of the initial encoder ─▶ stage 1 of each teacher ─▶ targets
           ─▶ shards (pixels written once, targets per arm) ─▶ stage 2 of each arm
           ─▶ features of all held-out cases ─▶ linear probe and ABMIL on the planted factor

Every job is the one that a user runs, in this process. What is done is found again: a run that was
stopped goes on.
"""

import csv
import io
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64

from mstar.cli.ablate_patches import (
    Features,
    Shown,
    embed_all,
    encode,
    plan_of,
    read_pixels,
    read_truth,
    slides_of,
)
from mstar.cohorts import generate, split_job
from mstar.cohorts.generated.config import GenerateConfig
from mstar.cohorts.split_config import SplitConfig
from mstar.data.cases import read_cases, write_cases
from mstar.data.reports import read_reports
from mstar.data.splits.preset import PresetConfig
from mstar.data.splits.registry import read_registry
from mstar.errors import ConfigError, MstarError
from mstar.features.store import FeatureStore
from mstar.losses.self_taught import SelfTaughtLossConfig
from mstar.losses.stage1 import LossConfig
from mstar.models.aggregator import AggregatorConfig
from mstar.models.gene_encoder import GeneEncoderConfig
from mstar.pretrain import stage1, stage2, targets_job
from mstar.pretrain.ablate_arms import (
    ARMS,
    INITIAL,
    Arm,
    save_untrained,
    shuffled_pairing,
    teachers_of,
)
from mstar.pretrain.ablate_config import AblateConfig
from mstar.pretrain.ablate_probe import PROBES, cross_validated, folds_of
from mstar.pretrain.ablate_report import Score
from mstar.pretrain.ablate_shards import with_shuffled_targets, with_targets_of
from mstar.pretrain.small_text_encoder import write_small_text_encoder
from mstar.pretrain.stage1_config import Stage1Config
from mstar.pretrain.stage2_config import Stage2Config
from mstar.pretrain.targets_config import TargetsConfig
from mstar.recipes import stage1 as stage1_recipes
from mstar.recipes import stage2 as stage2_recipes
from mstar.recipes import targets as targets_recipes
from mstar.schema import SlideRef
from mstar.training.exit_codes import ExitCode
from mstar.training.seeds import seed_of

RESULTS = "results.csv"
NUM_GENES = 260


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedRun:
    """A repetition and where it lies.

    weights: of the initial encoder. threads: CPU threads of torch.
    """

    config: AblateConfig
    seed: int
    weights: str
    threads: int = 1

    @property
    def folder(self) -> Path:
        """Everything of this seed."""
        return Path(self.config.out) / f"seed-{self.seed}"

    def at(self, *parts: str) -> str:
        """An address below it."""
        return str(self.folder.joinpath(*parts))


def run_seed(run: SeedRun) -> list[Score]:
    """All arms of one seed; what the jobs say goes to seed-N/log.txt."""
    results = run.folder / RESULTS
    if results.exists():
        found = read_scores(results)
        if set(run.config.chosen) <= {score.arm for score in found}:
            return found
    torch.set_num_threads(run.threads)
    run.folder.mkdir(parents=True, exist_ok=True)
    with _said_to(run.folder / "log.txt"):
        scores = list(_scores(run))
    write_scores(results, scores)
    if not run.config.keep:
        for name in ("cohort", "features", "cohort-b"):
            shutil.rmtree(run.folder / name, ignore_errors=True)
        for path in run.folder.glob("arm-*/shards"):
            shutil.rmtree(path)
        for path in run.folder.glob("targets-*"):
            shutil.rmtree(path)
    return scores


def _scores(run: SeedRun) -> Iterator[Score]:
    config = run.config
    cohort = make_cohort(config, run.at("cohort"), seed=run.seed, cases=config.cases, alone=True)
    split(cohort, config.pretrained)
    plan = plan_of(
        cohort, run.at("features"), weights=run.weights, patch_px=config.patch_px,
        threads=run.threads,
    )  # fmt: skip
    slides = slides_of(cohort)
    store = embed_all(plan, slides)
    held_out = read_pixels(plan, held_out_slides(cohort, slides), shown=shown_patches(config))
    for teacher in teachers_of(config.chosen):
        if teacher:
            make_teacher(run, teacher, store)
            expect(targets_job.run(targets_config(run, teacher)), f"targets of {teacher}")
    for letter in config.chosen:
        began_s = time.monotonic()
        encoder = run.weights if letter == INITIAL else train_arm(run, letter)
        features = encode(encoder, held_out, threads=run.threads)
        for probe, value in evaluate(run, cohort, features).items():
            yield Score(seed=run.seed, arm=letter, probe=probe, auc=value)
        print(f"ablate: arm {letter} in {time.monotonic() - began_s:.0f} s", flush=True)


def make_cohort(
    config: AblateConfig, out: str, *, seed: int, cases: int, types: int = 0, alone: bool = False
) -> str:
    """A generated cohort; returns its folder.

    types: of cancer, 0 for the config's. alone: slides, reports and expression share the factor
        that is asked for and nothing else, as far as the generator can leave the others out. With
        three shared factors stage 1 learns one or two of them in so few steps, and which is chance.
    """
    made = GenerateConfig(
        out=out,
        cases=cases,
        seed=seed,
        num_cancer_types=types or config.num_cancer_types,
        slides_per_case_max=1,
        slide_px=config.slide_px,
        patch_px=config.patch_px,
        signal_strength=config.signal_strength,
        report_strength=2 * config.signal_strength,
        rna_strength=3 * config.signal_strength,
        noise=config.noise,
        num_grades=1 if alone else 3,
        mutation_rate=0.0 if alone and config.factor != "mutation" else 0.5,
        site_effect=0.0,  # a hospital's stain and RNA batch would be a second thing pairs share
        signal_fraction=config.signal_fraction,
        missing_report=0.03,
        missing_rna=0.03,
        pen_fraction=0.0,
        fold_fraction=0.0,
        num_genes=NUM_GENES,
        workers=1,
    )
    expect(generate.run(made), f"cohort {seed}")
    return out


def split(cohort: str, pretrained: float) -> None:
    """A share of the patients is pretrained on; the others are held out."""
    ratio = (pretrained, 0.0, 1 - pretrained)
    settings = PresetConfig(cohorts="all", min_cases=0, ratio=ratio)
    config = SplitConfig(cohort=cohort, preset="mstar", settings=settings, tasks=("none",))
    expect(split_job.run(config), f"split of {cohort}")


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


def make_teacher(run: SeedRun, letter: str, store: FeatureStore) -> None:
    """The aggregator of an arm, trained by stage 1 unless the arm wants it untrained."""
    arm, config, cohort = ARMS[letter], run.config, run.at("cohort")
    if not arm.modalities:
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


def shuffled_cohort(run: SeedRun) -> str:
    """The cohort with reports and RNA of other patients; a donor is pretrained on as well."""
    source, target = run.folder / "cohort", run.folder / "cohort-b"
    ignored = shutil.ignore_patterns("slides", "truth", "sources")
    shutil.copytree(source, target, ignore=ignored, dirs_exist_ok=True)
    cases = read_cases(str(source / "cases.csv"))
    seen = read_registry(str(source)).pretraining
    ours = [case for case in cases if case.case_id in seen]
    shuffled = {case.case_id: case for case in shuffled_pairing(ours, seed=run.seed)}
    write_cases(str(target / "cases.csv"), [shuffled.get(case.case_id, case) for case in cases])
    return str(target)


def aggregator_config(config: AblateConfig) -> AggregatorConfig:
    """A small aggregator whose padding does not count: bags here are smaller than the window."""
    return AggregatorConfig(dim=config.dim, heads=4, landmarks=16, mode="masked")


def stage1_config(run: SeedRun, letter: str, arm: Arm, cohort: str) -> Stage1Config:
    """Stage 1 of an arm."""
    config = run.config
    text = run.folder / "text-encoder"
    if not text.exists():
        reports = read_reports(run.at("cohort", "reports.csv"))
        texts = [report.text for report in reports.values()]
        write_small_text_encoder(text, texts, layers=1, seed=run.seed)
    return replace(
        stage1_recipes.laptop(),
        cohort=cohort,
        features=run.at("features"),
        out=run.at(f"teacher-{letter}"),
        modalities=arm.modalities,
        text=str(text),
        epochs=config.stage1_epochs,
        batch_cases=config.stage1_batch_cases,
        chunk_cases=config.stage1_batch_cases,
        bag_patches=config.bag_patches,
        max_tokens=448,  # whole reports: a finding may stand anywhere
        binning="quantile",  # the planted effect is smaller than a bin of scBERT's
        num_bins=32,
        loss=LossConfig(triplet_weight=0.0),  # it tells types apart, and would be the only one to
        lr=config.stage1_lr,
        initial_scale=config.stage1_scale,
        lr_text=config.stage1_lr,  # the report encoder is drawn, not pretrained
        val_fraction=0.0,
        validate_every_epochs=0,
        checkpoint_every_epochs=config.stage1_epochs,
        aggregator=aggregator_config(config),
        gene=GeneEncoderConfig(
            dim=32, heads=2, head_dim=16, random_features=32, depth=1, checkpoint_cases=0
        ),
        gradient_checkpointing=False,  # all of it fits, and nothing is computed twice
        seed=run.seed,
        tracking=False,
    )


def targets_config(run: SeedRun, letter: str) -> TargetsConfig:
    """Targets of an arm's aggregator for the cases pretrained on; pixels only with the first."""
    first = letter == min(filter(None, teachers_of(run.config.chosen)))
    base = targets_recipes.laptop()
    return replace(
        base,
        cohort=run.at("cohort"),
        features=run.at("features"),
        aggregator=run.at(f"teacher-{letter}"),
        out=run.at(f"targets-{letter}"),
        run=replace(base.run, tracking=False),
        shards=first,
        shard=replace(base.shard, image="encoder", shard_mb=64, memory_mb=256),
    )


def train_arm(run: SeedRun, letter: str) -> str:
    """Stage 2 of an arm; returns the encoder's weights."""
    expect(stage2.run(stage2_config(run, letter)), f"stage 2 of {letter}")
    return run.at(f"arm-{letter}", "encoder.safetensors")


def arm_shards(run: SeedRun, letter: str) -> str:
    """The shards of an arm: the first teacher's, or a copy with other targets."""
    arm = ARMS[letter]
    first = min(filter(None, teachers_of(run.config.chosen)))
    shards, out = run.at(f"targets-{first}"), run.at(f"arm-{letter}", "shards")
    if Path(out, "index.json").exists():
        return out
    if arm.teacher != first:
        with_targets_of(shards, run.at(f"targets-{arm.teacher}"), out, why=f"teacher {arm.teacher}")
        return out
    if arm.shuffled_targets:
        with_shuffled_targets(shards, out, seed=run.seed)
        return out
    return shards


def stage2_config(run: SeedRun, letter: str) -> Stage2Config:
    """Stage 2 of an arm: only the shards, and in arm d the weight of loss A, differ."""
    config = run.config
    base = stage2_recipes.laptop()
    loss = SelfTaughtLossConfig(balance=config.balance)
    if not ARMS[letter].loss_a:
        loss = SelfTaughtLossConfig(mixing="lambda_a", balance=0.0)
    return replace(
        base,
        shards=arm_shards(run, letter),
        weights=run.weights,
        out=run.at(f"arm-{letter}"),
        epochs=10_000,
        max_steps=config.stage2_steps,
        batch_patches=config.stage2_batch,
        micro_batch=config.stage2_batch,
        lr=config.stage2_lr,
        lr_projection=config.stage2_lr_projection,
        loss=loss,
        checkpoint_every_steps=0,
        watch_every_steps=0,
        log_every_steps=20,
        model_name="",
        seed=run.seed,
        tracking=False,
    )


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


def expect(code: int, what: str) -> None:
    """Stop where a job did not complete."""
    if code != ExitCode.COMPLETE:
        raise MstarError(f"ablate: {what} ended with exit code {code}; the log says why")


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


@contextmanager
def _said_to(path: Path) -> Iterator[None]:
    with path.open("a") as file, redirect_stdout(file), redirect_stderr(file):
        yield
