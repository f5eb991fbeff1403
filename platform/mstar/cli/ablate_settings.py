"""Settings of the jobs that the ablation runs: one repetition's, arm by arm.

Every job is the one that a user runs. What differs between arms is written here and nowhere else.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from mstar.cohorts import generate, split_job
from mstar.cohorts.generated.config import GenerateConfig
from mstar.cohorts.split_config import SplitConfig
from mstar.data.cases import read_cases, write_cases
from mstar.data.splits.preset import PresetConfig
from mstar.data.splits.registry import read_registry
from mstar.errors import MstarError
from mstar.losses.self_taught import SelfTaughtLossConfig
from mstar.losses.stage1 import LossConfig
from mstar.models.aggregator import AggregatorConfig
from mstar.models.gene_encoder import GeneEncoderConfig
from mstar.pretrain.ablate_arms import ARMS, Arm, shuffled_pairing, teachers_of
from mstar.pretrain.ablate_config import AblateConfig
from mstar.pretrain.ablate_shards import with_shuffled_targets, with_targets_of
from mstar.pretrain.stage1_config import Stage1Config
from mstar.pretrain.stage2_config import Stage2Config
from mstar.pretrain.targets_config import TargetsConfig
from mstar.recipes import stage1 as stage1_recipes
from mstar.recipes import stage2 as stage2_recipes
from mstar.recipes import targets as targets_recipes
from mstar.training.exit_codes import ExitCode

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
    return replace(
        stage1_recipes.laptop(),
        cohort=cohort,
        features=run.at("features"),
        out=run.at(f"teacher-{letter}"),
        modalities=arm.modalities,
        text=run.at("text-encoder"),
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
        engine=replace(base.engine, precision=config.stage2_precision),
        checkpoint_every_steps=0,
        watch_every_steps=0,
        log_every_steps=20,
        model_name="",
        seed=run.seed,
        tracking=False,
    )


def expect(code: int, what: str) -> None:
    """Stop where a job did not complete."""
    if code != ExitCode.COMPLETE:
        raise MstarError(f"ablate: {what} ended with exit code {code}; the log says why")
