"""What a caller can set for `mstar cohort split`."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from mstar.data.splits.preset import PresetConfig
from mstar.errors import ConfigError

Scheme = Literal["survival", "label", "kfold", "site", "external"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitConfig:
    """Split the patients of a cohort and freeze who is trained, validated and tested on."""

    cohort: tyro.conf.Positional[str]
    """Cohort folder with cases.csv; local or s3://."""
    preset: Literal["mstar"] | None = None
    """mstar = make the split registry: large cohorts by survival, the rest to pretraining."""
    scheme: Scheme | None = None
    """Make a further split instead: survival or label (one fold, --ratio), kfold, site
    (leave-one-site-out) or external (all test)."""
    name: str = ""
    """Name of the further split: splits/NAME.csv; default: the scheme."""
    settings: Annotated[PresetConfig, tyro.conf.arg(name="")] = field(default_factory=PresetConfig)
    tasks: tuple[str, ...] = ()
    """Label tables, or folders of them, whose val and test patients are kept out of pretraining;
    default: labels/ of the cohort, where there is one; none = no task."""
    label: str | None = None
    """Label table (case_id, label or time_months, event): the split is made of its cases."""
    label_column: str = "label"
    """Column of the label table to stratify by."""
    folds: int = 5
    """Folds of kfold."""
    val_share: float = 0.1
    """Share of the cases not tested that validates, in each fold of kfold and site."""
    min_site_cases: int = 1
    """Sites with fewer cases than this are never tested, they stay in training."""
    allow_seen: bool = False
    """Take a further split though pretraining sees cases that it tests: right only for encoders
    not pretrained on this cohort. Recorded in the split."""
    extend: bool = False
    """Keep every case of the registry where it is and place only new ones."""
    replace: str = ""
    """Digest (12 digits or more) of the split that may be replaced; a copy is kept."""
    dry_run: bool = False
    """Print what the split would be, write nothing."""

    def __post_init__(self) -> None:
        """Refuse settings that contradict one another."""
        if (self.preset is None) == (self.scheme is None):
            raise ConfigError(
                "mstar cohort split: expected --preset mstar (the registry) or --scheme "
                "survival|label|kfold|site|external (a further split), one of the two."
            )
        if self.extend and (self.preset is None or self.replace):
            raise ConfigError("--extend goes with --preset mstar, and not with --replace.")
        if self.scheme == "label" and self.label is None:
            raise ConfigError("--scheme label: expected a label table. Name it with --label FILE.")
