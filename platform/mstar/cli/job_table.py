"""The table of jobs, and what a job's name stands for; nothing of a job is imported to read it."""

import difflib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mstar.cli.resolve import JobParts
from mstar.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One row of the job table; its modules are named, and imported only when needed.

    summary: one line for `mstar --help`.
    run: `module:function` that takes the config and returns an exit code.
    config: `module:class` of a job without recipes.
    recipes: module with RECIPES and DEFAULT, of a job that has them.
    words: `run` takes the words of the command line as they are, for they hold another job's.
    """

    summary: str
    run: str
    config: str = ""
    recipes: str = ""
    words: bool = False


JOBS = {
    "grid": Job(
        summary="slides → the grid of patches on tissue, thumbnail, GeoJSON",
        run="mstar.embed.grid_job:run",
        recipes="mstar.recipes.grid",
    ),
    "embed": Job(
        summary="slides → patch features, one HDF5 per slide",
        run="mstar.embed.job:run",
        recipes="mstar.recipes.embed",
    ),
    "cohort build": Job(
        summary="slides, reports, expression, clinical table → a cohort of cases",
        run="mstar.cohorts.build:run",
        config="mstar.cohorts.build:BuildConfig",
    ),
    "cohort split": Job(
        summary="a cohort → its split registry, or a further split",
        run="mstar.cohorts.split_job:run",
        config="mstar.cohorts.split_job:SplitConfig",
    ),
    "cohort check": Job(
        summary="a cohort → its counts and every problem found, on one screen",
        run="mstar.cohorts.check:run",
        config="mstar.cohorts.check:CheckConfig",
    ),
    "cohort generate": Job(
        summary="nothing → a small complete cohort with a known truth",
        run="mstar.cohorts.generate:run",
        config="mstar.cohorts.generate:GenerateConfig",
    ),
    "labels build": Job(
        summary="published clinical, mutation and subtype files → the label table of each task",
        run="mstar.cohorts.labels_job:run",
        config="mstar.cohorts.labels_job:LabelsBuildConfig",
    ),
    "stage1": Job(
        summary="cases with features, reports, expression → aggregator, text and gene encoders",
        run="mstar.pretrain.stage1:run",
        recipes="mstar.recipes.stage1",
    ),
    "targets": Job(
        summary="features + stage-1 aggregator → patch targets and patch shards",
        run="mstar.pretrain.targets_job:run",
        recipes="mstar.recipes.targets",
    ),
    "shards check": Job(
        summary="patch shards → counts, checksums, shuffle quality, target statistics",
        run="mstar.pretrain.shards_check:run",
        config="mstar.pretrain.shards_check:ShardsCheckConfig",
    ),
    "stage2": Job(
        summary="patch shards → the patch encoder, taught by the aggregator",
        run="mstar.pretrain.stage2:run",
        recipes="mstar.recipes.stage2",
    ),
    "ablate": Job(
        summary="is it the method that makes the encoder better? arms on generated cohorts",
        run="mstar.cli.ablate:run",
        recipes="mstar.recipes.ablate",
    ),
    "tasks list": Job(
        summary="the downstream tasks, each with kind, endpoint, metric, regime",
        run="mstar.downstream.tasks_job:run_list",
        config="mstar.downstream.tasks_job:TasksListConfig",
    ),
    "tasks show": Job(
        summary="one task: what it is, and what it needs from you",
        run="mstar.downstream.tasks_job:run_show",
        config="mstar.downstream.tasks_job:TasksShowConfig",
    ),
    "tasks check": Job(
        summary="label tables + features → which tasks can run, and why not the others",
        run="mstar.downstream.tasks_job:run_check",
        config="mstar.downstream.tasks_job:TasksCheckConfig",
    ),
    "train-head": Job(
        summary="one task × one encoder × one head → predictions, model, scores",
        run="mstar.downstream.train_job:run",
        config="mstar.downstream.train_config:TrainHeadConfig",
    ),
    "sweep": Job(
        summary="many tasks × encoders × heads, by Ray Tune → predictions, models, MLflow",
        run="mstar.downstream.sweep:run",
        config="mstar.downstream.sweep_config:SweepConfig",
    ),
    "results": Job(
        summary="predictions → tables with intervals, and one static page",
        run="mstar.downstream.results.job:run",
        config="mstar.downstream.results.config:ResultsConfig",
    ),
    "report write": Job(
        summary="a trained report generator + features → the reports of slides",
        run="mstar.downstream.report_generation.job:run",
        config="mstar.downstream.report_generation.job_config:ReportWriteConfig",
    ),
    "predict": Job(
        summary="a finished study + new slides → calibrated scores, or risk and survival curve",
        run="mstar.predict.job:run",
        config="mstar.predict.config:PredictConfig",
    ),
    "retrieve": Job(
        summary="a text, or a case → the cases most like it, with their most similar patches",
        run="mstar.evidence.retrieve_job:run",
        config="mstar.evidence.retrieve_job:RetrieveConfig",
    ),
    "heatmap": Job(
        summary="a finished study, or a text + slides → which patches: GeoJSON, PNG, TIFF",
        run="mstar.evidence.heatmap_job:run",
        config="mstar.evidence.config:HeatmapConfig",
    ),
    "view": Job(
        summary="a slide + patch scores → in the browser; served, or as a folder",
        run="mstar.evidence.viewer.job:run",
        config="mstar.evidence.viewer.config:ViewConfig",
    ),
    "encode": Job(
        summary="features, reports, RNA + stage 1 → one vector each: Parquet, AnnData, TRIDENT",
        run="mstar.downstream.encode_job:run",
        config="mstar.downstream.encode_config:EncodeConfig",
    ),
    "export": Job(
        summary="features → the layout of CLAM, mSTAR, TRIDENT, STAMP, or arrays",
        run="mstar.cli.exchange:export_features",
        config="mstar.cli.exchange:ExportConfig",
    ),
    "import": Job(
        summary="features of CLAM, mSTAR, TRIDENT, STAMP, or plain arrays → ours",
        run="mstar.cli.exchange:import_features",
        config="mstar.cli.exchange:ImportConfig",
    ),
    "demo": Job(
        summary="the whole pipeline on a small cohort, on this machine",
        run="mstar.cli.demo:run",
        config="mstar.cli.demo:DemoConfig",
    ),
    "submit": Job(
        summary="any job above → onto a Ray cluster, with its code, and its links",
        run="mstar.cli.submit:run_words",
        config="mstar.cli.submit_config:SubmitConfig",
        words=True,
    ),
    "measure": Job(
        summary="this machine → its rates, as a small file for `mstar plan`",
        run="mstar.cli.measure:run",
        config="mstar.cli.measure:MeasureConfig",
    ),
    "plan": Job(
        summary="counts or a manifest + a cluster → bytes, hours, cost, bottleneck",
        run="mstar.planning.job:run",
        config="mstar.planning.config:PlanConfig",
    ),
    "doctor": Job(
        summary="checks this machine, and previews slides with --slides",
        run="mstar.cli.doctor:run",
        config="mstar.cli.doctor:DoctorConfig",
    ),
}


def take_job(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The job's name and what follows it."""
    for num_words in (1, 2):
        name = " ".join(arguments[:num_words])
        if name in JOBS:
            return name, list(arguments[num_words:])
    group = [name for name in JOBS if name.startswith(f"{arguments[0]} ")]
    if group:
        raise ConfigError(f"mstar {arguments[0]} needs one of: {', '.join(group)}")
    raise ConfigError(f"no job {arguments[0]!r}; {nearest(arguments[0], JOBS)}")


def parts_of(job: Job) -> JobParts:
    """The config or the recipes of a job; what runs it is not imported yet."""
    if job.recipes:
        module = importlib.import_module(job.recipes)
        return JobParts(recipes=module.RECIPES, default=module.DEFAULT)
    return JobParts(config=named(job.config))


def named(name: str) -> Any:
    """What `module:name` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def nearest(word: str, known: Sequence[str] | dict[str, Job]) -> str:
    """What the user may have meant, and what there is."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}There are: {', '.join(known)}"
