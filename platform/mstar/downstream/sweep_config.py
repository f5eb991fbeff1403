"""What a caller can set for a sweep."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mstar.data.task_registry import ALL, DEFAULT
from mstar.downstream.families import PAPER, check_methods, is_method
from mstar.downstream.family_job import FamilySources
from mstar.downstream.gene_flags import GeneFlags
from mstar.errors import ConfigError
from mstar.models.heads import FUSION_HEADS, HEADS, head_config, head_spec

FUSION_ARMS = "abmil", "snn"
"""What fusion is compared with: slides alone, genes alone."""
_TRUTHS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepConfig(GeneFlags):
    """Train and test heads on many tasks with the features of one encoder or more."""

    labels: str
    """Folder of label tables, <task_id>.csv each; local or s3://."""

    features: tuple[str, ...]
    """Feature stores: a label and one store or more, uni=F1,F2 mstar=F3; or a store alone."""

    out: str
    """Folder for results: <out>/<task>/<encoder>/<head>/; local or s3://."""

    tasks: tuple[str, ...] = (ALL,)
    """Ids, groups (a kind, category, type, regime, data set) or all."""

    heads: tuple[str, ...] = ("abmil",)
    """MIL heads, or all: linear, knn, prototype, abmil, abmil_gated, clam_sb, clam_mb, dsmil,
    transmil, transmil_plus, cox_linear; with gene expression snn, mcat, porpoise, motcat, cmta;
    fusion = the last four and their arms abmil (slides alone) and snn (genes alone). A head that is
    not for a task's kind is left out there."""

    methods: tuple[str, ...] = (PAPER,)
    """Of tasks that train no head: paper = the paper's, all, or mi_zero, slide_text, slide_rna,
    few_prototype, few_linear, few_abmil, histgen. Of a task's kind those that it has are run."""

    stage1: str = ""
    """Folder that `mstar stage1 --out` wrote: zero-shot and retrieval take its encoders."""

    stage2: str = ""
    """Folder that `mstar stage2 --out` wrote: mi_zero takes its projection; empty: the tokens of
    the aggregator, which the projection imitates."""

    prompts: str = ""
    """Folder of prompts, <task_id>.json or .csv, or one such file; empty: the package's own."""

    encoders: tuple[str, ...] = ()
    """Labels of `features` to take; empty: all of them."""

    space: str = "paper"
    """paper = the paper's one configuration; tune = the file of each head in tune_spaces/; quick =
    a few short trials to see that everything runs; or another file there, or a path."""

    trials: int = 0
    """Configurations of each study, in place of the space's number; 0 leaves that."""

    option: tuple[str, ...] = ()
    """Options of heads for all configurations, head.name=value: transmil_plus.aggregator=A; and of
    methods: mi_zero.top=10."""

    seeds: int = 1
    """Runs with the seeds 1, 2, …: 1 for parity with the paper, 10 for claims."""

    protocol: Literal["honest", "paper-compat"] = "honest"
    """honest = chosen on validation, tested once; paper-compat = as the authors' code: bins over
    the whole file, 50 epochs for classification, chosen on validation and test. It reads high."""

    cohort: str = ""
    """Cohort folder whose split registry (splits.csv) the tasks are cut from; empty: the label
    tables say which part a row is in. Its reports and RNA are what retrieval and report generation
    take, so these two need it."""

    split: str = ""
    """Name of a further split of the cohort (splits/NAME.csv) in the registry's place."""

    published_split: tuple[str, ...] = ()
    """Tasks (ids, groups or all) that run the split of their own table, whatever it leaks: leaking
    patients are counted and the task's row is marked."""

    max_missing: float = 0.0
    """Share of a task's samples (0 to 1) that may lack features; they are left out and counted."""

    registry: str = DEFAULT
    """mstar-97 = the tasks of the paper; mstar-v1 = the older list of 43."""

    own: tuple[str, ...] = ()
    """Tables of your own task rows; <cohort>/tasks.csv is added where there is one."""

    max_trials_per_gpu: int = 1
    """Trials that share a GPU; each reserves that fraction of it."""

    max_parallel: int = 0
    """Trials at once, at most; 0: one a core, or as many as the GPUs hold."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where heads train; auto takes GPUs where the cluster has any."""

    cache_dir: str | None = None
    """Local folder for packed bags; shared memory, or the node's cache, when not given."""

    figures: bool = True
    """Draw ROC, precision-recall, confusion, calibration or Kaplan-Meier of each winner."""

    tracking: bool = True
    """Log to MLflow: a run for the sweep, one a study below it, one a trial below that."""

    tracking_uri: str = ""
    """Of MLflow; empty: MLFLOW_TRACKING_URI, else <out>/mlflow.db."""

    address: str | None = None
    """Ray cluster to join; RAY_ADDRESS, else a local one, when not given."""

    dry_run: bool = False
    """Print the studies and what is left out, then stop."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant before a file is read."""
        for name in ("seeds", "max_trials_per_gpu"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{_flag(name)} {getattr(self, name)}: expected 1 or more")
        for name in ("trials", "max_parallel"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{_flag(name)} {getattr(self, name)}: expected 0 or more")
        if not 0 <= self.max_missing < 1:
            raise ConfigError(f"--max-missing {self.max_missing:g}: expected 0 up to below 1.")
        if self.split and not self.cohort:
            raise ConfigError("--split: expected --cohort too, the folder that it lies in.")
        check_methods(self.methods)
        options = self.head_options
        if "transmil_plus" in self.head_names and not options["transmil_plus"].get("aggregator"):
            raise ConfigError(
                "--heads transmil_plus: no aggregator to start from. Give --option "
                "transmil_plus.aggregator=A, the folder that `mstar stage1 --out` wrote."
            )

    @property
    def head_names(self) -> tuple[str, ...]:
        """The heads, each once; `all` is every one, transmil_plus where it has an aggregator."""
        words = [name for word in self.heads for name in word.split(",") if name]
        if not words:
            raise ConfigError("--heads: expected a head or more, got none.")
        given = any(word.startswith("transmil_plus.aggregator=") for word in self.option)
        every = [name for name in HEADS if given or name != "transmil_plus"]
        groups = {"all": every, "fusion": [*FUSION_HEADS, *FUSION_ARMS]}
        names = [one for word in words for one in groups.get(word, [word])]
        return tuple(dict.fromkeys(head_spec(name).name for name in names))

    @property
    def sources(self) -> FamilySources:
        """What families are given (`families`)."""
        return FamilySources(
            cohort=self.cohort, stage1=self.stage1, stage2=self.stage2, prompts=self.prompts
        )

    @property
    def head_options(self) -> Mapping[str, dict[str, Any]]:
        """Head → its options from the command line."""
        options: dict[str, dict[str, Any]] = {name: {} for name in self.head_names}
        for word in self.option:
            path, mark, text = word.partition("=")
            head, dot, name = path.partition(".")
            if mark and dot and is_method(head):
                continue
            if not mark or not dot or head not in options:
                raise ConfigError(
                    f"--option {word}: expected head.name=value with a head of this sweep "
                    f"({', '.join(options)})."
                )
            options[head][name] = _value(word, head, name, text)
        for head, own in options.items():
            head_config(head, own)
        return options


def _value(word: str, head: str, name: str, text: str) -> Any:
    """The text as the option's own type; unknown options are refused by the head."""
    default = getattr(head_spec(head).config(), name, "")
    try:
        return _TRUTHS[text.lower()] if isinstance(default, bool) else type(default)(text)
    except (KeyError, ValueError) as error:
        kind = type(default).__name__
        raise ConfigError(f"--option {word}: expected a value of type {kind}") from error


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
