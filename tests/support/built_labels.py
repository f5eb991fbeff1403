"""One task's labels, built of small published files, and how to read them."""

from pathlib import Path
from typing import Any

from mstar.cohorts.labels_config import LabelsBuildConfig
from mstar.cohorts.labels_job import build_labels
from mstar.cohorts.labels_result import TaskOutcome
from mstar.data.label_build.settings import LabelSettings
from mstar.data.labels import ClassLabel, SurvivalLabel
from support.published_files import case, write_cohort


def write_breast_cohort(folder: Path) -> str:
    """Eight breast cancers, the last without slides, and a lung cancer."""
    cases = [case(n, "BRCA", slides=2 if n == 1 else 1) for n in range(1, 8)]
    cases += [case(8, "BRCA", slides=0), case(9, "LUAD")]
    return write_cohort(folder, cases)


def built(sources: Path, cohort: str, task: str, **settings: Any) -> TaskOutcome:
    """One task."""
    config = LabelsBuildConfig(
        sources=str(sources),
        out="unused",
        cohort=(cohort,) if cohort else (),
        tasks=(task,),
        settings=LabelSettings(**settings),
    )
    (outcome,) = build_labels(config)
    return outcome


def classes(outcome: TaskOutcome) -> dict[str, str]:
    """Last four characters of a case → its class."""
    assert outcome.state == "built", outcome.reason
    return {x.case_id[-4:]: x.label for x in outcome.derived.labels if isinstance(x, ClassLabel)}


def times(outcome: TaskOutcome) -> dict[str, tuple[float, int]]:
    """Last four characters of a case → months and event."""
    assert outcome.state == "built", outcome.reason
    found = [label for label in outcome.derived.labels if isinstance(label, SurvivalLabel)]
    return {label.case_id[-4:]: (label.time_months, label.event) for label in found}
