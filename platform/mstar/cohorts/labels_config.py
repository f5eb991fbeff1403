"""What a caller can set for `mstar labels build`."""

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from mstar.data.label_build.settings import LabelSettings
from mstar.data.task_registry import ALL, DEFAULT
from mstar.errors import ConfigError

NO_PARTS = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelsBuildConfig:
    """Build the label table of each task from the files that data sets publish."""

    sources: str
    """Folder of the published files, one folder a data set: tcga/, panda/, camelyon/ … (see
    platform/docs/labels.md); local or s3://."""
    out: str
    """Folder for the label tables, <task_id>.csv, and labels.json; local or s3://."""
    cohort: tuple[str, ...] = ()
    """Cohort folders of `mstar cohort build`: which slides, type and expression a TCGA case has."""
    tasks: tuple[str, ...] = (ALL,)
    """Ids or groups of tasks, or all; those whose files are not there are listed as such."""
    registry: str = DEFAULT
    """The list of tasks."""
    own: tuple[str, ...] = ()
    """Task tables of your own."""
    derivations: tuple[str, ...] = ()
    """Tables of your own: task_id, derivation, dataset, cancer_types, arguments."""
    parts: str = "7:1:2"
    """Shares of train, val and test for tasks that bring their own split, by patient, stratified by
    label; none = leave the column empty."""
    seed: int = 0
    """Of that split."""
    replace: bool = False
    """Write over label tables that say something else."""
    settings: Annotated[LabelSettings, tyro.conf.arg(name="")] = field(
        default_factory=LabelSettings
    )
    dry_run: bool = False
    """Derive and compare, write nothing."""

    def __post_init__(self) -> None:
        """Refuse shares that cannot be read."""
        _ = self.ratio

    @property
    def ratio(self) -> tuple[float, float, float] | None:
        """Train, val, test; None for no split."""
        if self.parts == NO_PARTS:
            return None
        try:
            train, val, test = (float(part) for part in self.parts.split(":"))
        except ValueError:
            train = val = test = -1.0
        if min(train, val, test) < 0 or train + val + test <= 0:
            raise ConfigError(
                f"--parts {self.parts!r}: expected train:val:test like 7:1:2, or none."
            )
        return train, val, test
