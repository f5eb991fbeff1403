"""What `mstar results` reads, computes and writes."""

from dataclasses import dataclass
from typing import Literal

from mstar.data.task_registry import DEFAULT
from mstar.errors import ConfigError

Format = Literal["csv", "parquet", "latex", "markdown", "html"]
FORMATS: tuple[Format, ...] = ("csv", "parquet", "latex", "markdown", "html")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultsConfig:
    """Make tables and one static page from the predictions of sweeps."""

    runs: tuple[str, ...] = ()
    """Outputs of `mstar sweep`, or any folders (or files) of predictions; local or s3://."""

    out: str
    """Folder of the tables and of index.html."""

    tracking_uri: str = ""
    """MLflow to read predictions from, in place of or beside `runs`."""

    experiment: str = ""
    """Name of the MLflow experiment."""

    run: str = ""
    """Id or name of a sweep's parent run; empty takes every sweep of the experiment."""

    title: str = "Downstream results"
    """Title of the page and the tables."""

    reference_encoder: str = ""
    """Encoder that others are held against with the same head; empty: the first by name. It is
    chosen before results are seen: stars against the best one found would promise too much."""

    reference_head: str = ""
    """Head that others are held against with the same encoder; empty: the linear one, else the
    first by name."""

    resamples: int = 1000
    """Bootstrap resamples of patients behind each interval."""

    difference_resamples: int = 10_000
    """Resamples behind each difference without a closed form; its p cannot be below 2 over
    these."""

    seed: int = 0
    """Seed of the resamples."""

    metrics: Literal["all", "main"] = "all"
    """all adds every other metric of the kind of task, with intervals, to metrics.csv and the
    page."""

    formats: tuple[Format, ...] = FORMATS
    """What to write."""

    registry: str = DEFAULT
    """Task list that names what is predicted in which data set; other tasks are taken as they
    are."""

    own: tuple[str, ...] = ()
    """Tables of your own task rows."""

    workers: int = 0
    """Processes that compute; 0 takes one a core, 1 stays in this one."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant before a file is read."""
        if not self.runs and not self.tracking_uri:
            raise ConfigError(
                "mstar results: expected --runs (folders of predictions) or --tracking-uri with "
                "--experiment, got neither. Give the --out of a sweep."
            )
        if self.tracking_uri and not self.experiment:
            raise ConfigError(
                f"--tracking-uri {self.tracking_uri}: expected --experiment too, got none. Name "
                "the experiment of the sweep."
            )
        for name in ("resamples", "difference_resamples"):
            if getattr(self, name) < 100:
                raise ConfigError(f"--{name.replace('_', '-')}: expected 100 or more")
        if not self.formats or self.workers < 0:
            raise ConfigError("--formats: expected one or more; --workers: 0 or more")
