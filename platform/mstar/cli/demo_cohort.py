"""The demo's steps on a generated cohort of three modalities: both stages, and downstream."""

from dataclasses import replace
from pathlib import Path

from mstar.cli.demo_downstream import downstream_steps
from mstar.cli.demo_steps import Step, expect_complete
from mstar.cohorts import check, generate, split_job
from mstar.cohorts.generated.config import GenerateConfig
from mstar.cohorts.split_config import SplitConfig
from mstar.data.reports import read_reports
from mstar.data.splits.preset import PresetConfig
from mstar.embed import job
from mstar.embed.config import EmbedConfig
from mstar.pretrain import stage1, stage2, targets_job
from mstar.pretrain.small_text_encoder import write_small_text_encoder
from mstar.pretrain.stage2_config import Stage2Config
from mstar.pretrain.targets_config import TargetsConfig
from mstar.recipes import stage1 as stage1_recipes
from mstar.recipes import stage2 as stage2_recipes
from mstar.recipes import targets as targets_recipes

CASES = 24


def cohort_steps(embed: EmbedConfig, out: Path) -> list[Step]:
    """Make a cohort, look at it, embed it, align its modalities, teach the encoder, judge it.

    embed: how the demo embeds; the cohort gets a store of its own, with grids made on the fly.
    """
    cohort = out / "cohort"
    embed = replace(
        embed, slides=str(cohort / "slides.csv"), out=str(out / "cohort-features"), grids=None
    )
    return [
        Step(
            title=f"mstar cohort generate: {CASES} cases with a known truth",
            look=f"{cohort}: slides/, cases.csv, reports.csv, rna.tsv, labels/, truth/",
            do=lambda: expect_complete(
                generate.run(GenerateConfig(out=str(cohort), cases=CASES, seed=1))
            ),
        ),
        Step(
            title="mstar cohort split: who is trained, validated and tested on, by patient",
            look=f"{cohort / 'splits.csv'}: the registry that every later job cuts from",
            do=lambda: expect_complete(split_job.run(split_config(cohort))),
        ),
        Step(
            title="mstar embed: the cohort's slides",
            look=f"{embed.out}: one .h5 a slide",
            do=lambda: expect_complete(job.run(embed)),
        ),
        Step(
            title="mstar cohort check: counts, modality pairs, and what is wrong",
            look=f"{cohort / 'check.png'}",
            do=lambda: expect_complete(
                check.run(check.CheckConfig(cohort=str(cohort), features=str(embed.out)))
            ),
        ),
        Step(
            title="mstar stage1: align slides, reports and expression (small encoders, 6 epochs)",
            look=f"{out / 'stage1'}: the encoders, curves.png, retrieval.png, MLflow",
            do=lambda: expect_complete(run_stage1(cohort, embed.out, out)),
        ),
        Step(
            title="mstar targets: what the aggregator makes of every patch, and patch shards",
            look=f"{out / 'targets'}: targets/, shards/ and shards/preview.jpg",
            do=lambda: expect_complete(targets_job.run(targets_config(embed, cohort, out))),
        ),
        Step(
            title="mstar stage2: teach the patch encoder, a few steps",
            look=f"{out / 'stage2'}: encoder.safetensors, model_card.md, curves.png, MLflow",
            do=lambda: expect_complete(stage2.run(stage2_config(embed, out))),
        ),
        *downstream_steps(embed, out),
    ]


def targets_config(embed: EmbedConfig, cohort: Path, out: Path) -> TargetsConfig:
    """A target for every patch of the pretraining cases."""
    recipe = targets_recipes.laptop()
    return replace(
        recipe,
        shard=replace(recipe.shard, weights=embed.weights),
        cohort=str(cohort),
        features=embed.out,
        aggregator=str(out / "stage1"),
        out=str(out / "targets"),
    )


def stage2_config(embed: EmbedConfig, out: Path) -> Stage2Config:
    """Six steps from the weights that made the features."""
    return replace(
        stage2_recipes.laptop(),
        shards=str(out / "targets"),
        weights=str(embed.weights),
        out=str(out / "stage2"),
        batch_patches=32,
        micro_batch=32,
        lanes=4,
        lr=2e-5,
        max_steps=6,
        watch_every_steps=3,
        probe_patches=32,
    )


def split_config(cohort: Path) -> SplitConfig:
    """The registry of a cohort too small for the paper's threshold of 400 cases, and for 7:1:2."""
    settings = PresetConfig(cohorts="all", min_cases=0, ratio=(0.4, 0.2, 0.4))
    return SplitConfig(cohort=str(cohort), preset="mstar", settings=settings)


def run_stage1(cohort: Path, features: str, out: Path) -> int:
    """Stage 1 with a report encoder made on the spot: the demo needs no model hub."""
    reports = read_reports(str(cohort / "reports.csv"))
    texts = [report.text for report in reports.values()]
    folder = write_small_text_encoder(out / "text-encoder", texts)
    config = replace(
        stage1_recipes.laptop(),
        cohort=str(cohort),
        features=features,
        out=str(out / "stage1"),
        text=str(folder),
        epochs=6,
        batch_cases=16,
    )
    return stage1.run(config)
