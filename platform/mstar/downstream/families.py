"""Kinds of task that are no MIL head trained on bags, and how a sweep runs each.

    kind of task                              run as
    classification, ordinal                   trained by the one loop, a head a study
    survival, fusion_survival                 likewise; fusion is heads that take genes too
    zero_shot                                 slides scored against class prompts, nothing trained
    retrieval                                 slides, reports and RNA found by one another
    few_shot                                  prototypes, linear probe, ABMIL on k slides a class
    report_generation                         a decoder is trained, then writes the reports

The last four are *families*: `FAMILIES` has a row for each. A study of one is one task, the
features of one encoder and one *method*, which stands where trained tasks name their head: in
`Study.head`, in folders, tables and MLflow. `--methods` chooses them (`paper`: the first).

The contract of a family
    methods    method → `module:Class` of its options: a frozen dataclass whose every field has a
               default and is text, a number or a truth. `--option METHOD.FIELD=VALUE` sets one.
    run        `module:function`; takes a `FamilyJob`, returns a `FamilyOutcome`. It is called once
               a study, in a worker of the sweep (one core, or a share of a GPU), and may take
               hours. It is imported when it is called, and not before.
    needs      fields of `FamilySources` that must be given, for all methods or (`method_needs`) for
               one; without one the study is left out with the reason, and everything else goes on.
    check      `module:function` (task, sources, options, data) → None; raises ConfigError,
               TableError or WeightsError while the sweep is planned: bad prompts, no report of a
               case. Optional.

What `run` may rely on
- `job.data` are the samples with their slides (ids in the stores), cut into folds as for every
  task: `zero_shot` and `retrieval` have a test part alone; `few_shot` and `report_generation` have
  train, val and test; an external task has test alone, and `job.models_of` is the folder of the
  finished study of the same encoder and method on the task that it takes its models from.
- `job.bags()` are its features, packed and mapped; `job.stores()` the stores themselves.
- Settings are in `job.options` (its dataclass) and `job.sources`; seeds are `job.seeds`.
- Whatever it needs to go on after a kill it keeps below `job.work` (a folder of the study that is
  removed when the study is done), written through `mstar.storage.objects`. The sweep itself calls
  a finished study never again: that is the journal's business.

What `run` returns: predictions of the test (or external) part, made by `job.predictions`, and of
validation where there is any. `mstar results` reads nothing else. A row of scores is what the
family's metrics take: class probabilities (kind `classification`), or measures of each sample
(kinds `retrieval` and `report_generation`: columns and metrics in `statistics/measured.py`, where
a metric is a function of those columns and of how often each sample was drawn). The seam writes
them, `study.json` last, and gives the study's row to the journal and to MLflow.
"""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from mstar.data.task_data import TaskData
from mstar.data.tasks import Task
from mstar.downstream.family_job import FamilyJob, FamilyOutcome, FamilySources
from mstar.errors import ConfigError

PAPER, EVERY = "paper", "all"
_TRUTHS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How tasks of one kind are run; fields as the module says.

    work: about how much more than a pass over the features; for the order of studies.
    """

    kind: str
    methods: Mapping[str, str]
    run: str
    needs: tuple[str, ...] = ()
    method_needs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    check: str = ""
    work: float = 1.0


_LANGUAGE = "mstar.downstream.language"
FAMILIES: dict[str, Family] = {
    family.kind: family
    for family in (
        Family(
            kind="zero_shot",
            methods={
                "mi_zero": f"{_LANGUAGE}.options:MiZeroOptions",
                "slide_text": f"{_LANGUAGE}.options:SlideTextOptions",
            },
            run=f"{_LANGUAGE}.zero_shot:run",
            needs=("stage1",),
            check=f"{_LANGUAGE}.zero_shot:check",
        ),
        Family(
            kind="retrieval",
            methods={
                "mi_zero": f"{_LANGUAGE}.options:MiZeroOptions",
                "slide_text": f"{_LANGUAGE}.options:SlideTextOptions",
                "slide_rna": f"{_LANGUAGE}.options:SlideRnaOptions",
            },
            run=f"{_LANGUAGE}.retrieval:run",
            needs=("stage1", "cohort"),
            check=f"{_LANGUAGE}.retrieval:check",
        ),
        Family(
            kind="few_shot",
            methods={
                "few_prototype": f"{_LANGUAGE}.options:FewPrototypeOptions",
                "few_linear": f"{_LANGUAGE}.options:FewLinearOptions",
                "few_abmil": f"{_LANGUAGE}.options:FewAbmilOptions",
            },
            run=f"{_LANGUAGE}.few_shot:run",
            method_needs={"few_prototype": ("stage1",)},
            check=f"{_LANGUAGE}.few_shot:check",
            work=20.0,
        ),
        Family(
            kind="report_generation",
            methods={"histgen": "mstar.downstream.report_generation.options:HistGenOptions"},
            run="mstar.downstream.report_generation.family:run",
            needs=("cohort",),
            check="mstar.downstream.report_generation.family:check",
            work=100.0,
        ),
    )
}
"""Kind of task → how it is run. A kind that is not here is trained by the one loop."""


def family_of(kind: str) -> Family | None:
    """The family of a kind of task; None for kinds that are trained by the one loop."""
    return FAMILIES.get(kind)


def find_methods(kind: str, wanted: Sequence[str]) -> tuple[str, ...]:
    """The methods of a family that `--methods` names; empty where it names none of them."""
    own = tuple(FAMILIES[kind].methods)
    words = [word for text in wanted for word in text.split(",") if word]
    if EVERY in words:
        return own
    chosen = [own[0]] if PAPER in words else []
    return tuple(dict.fromkeys([*chosen, *(word for word in words if word in own)]))


def check_methods(wanted: Sequence[str]) -> None:
    """Raises ConfigError when a word is no method of any family."""
    known = {method for family in FAMILIES.values() for method in family.methods}
    words = [word for text in wanted for word in text.split(",") if word]
    unknown = [word for word in words if word not in known and word not in (PAPER, EVERY)]
    if unknown or not words:
        raise ConfigError(
            f"--methods {unknown[0] if unknown else ''}: expected {PAPER}, {EVERY} or some of "
            f"{', '.join(sorted(known))}."
        )


def method_options(kind: str, method: str, words: Sequence[str]) -> Any:
    """The options of a method, with those that `--option METHOD.FIELD=VALUE` sets.

    Raises:
        ConfigError: there is no such option, or the value is of another type.
    """
    options = named(FAMILIES[kind].methods[method])()
    changes = {}
    for word in words:
        path, _, text = word.partition("=")
        owner, _, name = path.partition(".")
        if owner != method:
            continue
        known = {f.name for f in dataclasses.fields(options)}
        if name not in known:
            raise ConfigError(f"--option {word}: {method} has {', '.join(sorted(known))}.")
        changes[name] = _value(word, getattr(options, name), text)
    return dataclasses.replace(options, **changes)


def is_method(name: str) -> bool:
    """Whether an option's owner is a method of a family rather than a head."""
    return any(name in family.methods for family in FAMILIES.values())


def needs_of(kind: str, method: str) -> tuple[str, ...]:
    """Fields of `FamilySources` that a method must be given."""
    family = FAMILIES[kind]
    return (*family.needs, *family.method_needs.get(method, ()))


def missing_sources(kind: str, method: str, sources: FamilySources) -> str:
    """Why a method cannot be run with what is given; empty when it can."""
    missing = [name for name in needs_of(kind, method) if not getattr(sources, name)]
    flags = " and ".join(f"--{name}" for name in missing)
    return f"{method} needs {flags}" if missing else ""


def check_task(kind: str, task: Task, sources: FamilySources, options: Any, data: TaskData) -> None:
    """Whatever can be told to be wrong before anything runs.

    Raises:
        MstarError: of the family's own `check`.
    """
    family = FAMILIES[kind]
    if family.check:
        named(family.check)(task, sources, options, data)


def run_family(job: FamilyJob) -> FamilyOutcome:
    """Run a study of a family."""
    return cast(FamilyOutcome, named(FAMILIES[job.data.task.kind].run)(job))


def named(name: str) -> Any:
    """What `module:name` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _value(word: str, default: Any, text: str) -> Any:
    try:
        return _TRUTHS[text.lower()] if isinstance(default, bool) else type(default)(text)
    except (KeyError, ValueError) as error:
        kind = type(default).__name__
        raise ConfigError(f"--option {word}: expected a value of type {kind}") from error
