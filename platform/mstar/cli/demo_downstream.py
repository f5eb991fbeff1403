"""The demo's last steps: what the encoders are worth downstream, a page of it, a new slide."""

from dataclasses import replace
from pathlib import Path

from mstar.cli.demo_steps import Step, expect_complete
from mstar.cohorts.generated.config import MIN_CASES, GenerateConfig
from mstar.cohorts.generated.factors import iter_cases, slides_of
from mstar.cohorts.generated.slide_pool import paint_one, slide_uri
from mstar.downstream import sweep
from mstar.downstream.results import job as results
from mstar.downstream.results.config import ResultsConfig
from mstar.downstream.sweep_config import SweepConfig
from mstar.embed import job
from mstar.embed.config import EmbedConfig
from mstar.predict import job as predict
from mstar.predict.config import PredictConfig

TASKS = ("planted_mutation", "planted_cancer_type", "planted_survival")
HEADS = ("abmil", "linear")


def downstream_steps(embed: EmbedConfig, out: Path) -> list[Step]:
    """Embed the cohort anew with the taught encoder, sweep, make the page, predict a new slide.

    embed: how the cohort was embedded by the initial encoder, its store included.
    """
    taught = replace(
        embed,
        weights=str(out / "stage2" / "encoder.safetensors"),
        out=str(out / "cohort-features-stage2"),
    )
    return [
        Step(
            title="mstar embed: the cohort's slides again, with the encoder that stage 2 taught",
            look=f"{taught.out}: one .h5 a slide; store.json names the weights",
            do=lambda: expect_complete(job.run(taught)),
        ),
        Step(
            title="mstar sweep: three tasks × two encoders × two heads",
            look=f"{out / 'sweep'}: predictions, models and figures of every study, MLflow",
            do=lambda: expect_complete(sweep.run(sweep_config(embed.out, taught.out, out))),
        ),
        Step(
            title="mstar results: intervals, comparisons and one page",
            look=f"{out / 'results' / 'index.html'}: open it in a browser",
            do=lambda: expect_complete(results.run(results_config(out))),
        ),
        Step(
            title="mstar predict: a slide that no job has seen, by a model of the sweep",
            look=f"{out / 'prediction' / 'predictions.csv'}: calibrated scores, versions, warning",
            do=lambda: expect_complete(predict.run(predict_config(embed, out))),
        ),
    ]


def sweep_config(initial: str, taught: str, out: Path) -> SweepConfig:
    """The paper's configuration of each head; few epochs would do, but they cost nothing here."""
    return SweepConfig(
        labels=str(out / "cohort" / "labels"),
        cohort=str(out / "cohort"),
        features=(f"initial={initial}", f"stage2={taught}"),
        tasks=TASKS,
        heads=HEADS,
        out=str(out / "sweep"),
    )


def results_config(out: Path) -> ResultsConfig:
    """Everything held against the initial encoder."""
    return ResultsConfig(
        runs=(str(out / "sweep"),),
        out=str(out / "results"),
        title="The demo's cohort: initial encoder and stage 2",
        reference_encoder="initial",
        difference_resamples=1000,
    )


def predict_config(embed: EmbedConfig, out: Path) -> PredictConfig:
    """The first slide of another generated cohort, tiled and embedded as those of this one."""
    settings = GenerateConfig(out=str(out / "new-slide"), cases=MIN_CASES, seed=2)
    slide = slides_of(settings, next(iter_cases(settings)))[0]
    paint_one(settings, slide)
    return PredictConfig(
        model=str(out / "sweep" / TASKS[0] / "initial" / HEADS[0]),
        slides=slide_uri(settings.out, slide),
        out=str(out / "prediction"),
        encoder=embed.encoder,
        weights=embed.weights,
        device=embed.device,
        batch_size=embed.batch_size,
        where="here",
    )
