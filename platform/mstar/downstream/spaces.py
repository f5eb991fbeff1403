"""Search spaces: what a study tries. Each is data, in a small Python file of `tune_spaces/`.

    SPACE = Space(search={"lr": LogUniform(1e-5, 1e-3)}, sampler="tpe", samples=32, epochs=(10, 30))

    paper     the paper's one configuration
    quick     a few short trials, to see that everything runs
    tune      the file of each head: abmil.py, transmil.py …
    NAME      any other file of that folder, or the path of one of your own

Every head's own file asks for the same number of samples and epochs: an equal budget.
"""

import dataclasses
import math
import runpy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import mstar
from mstar.downstream.config import TrialConfig, paper_trial
from mstar.errors import ConfigError
from mstar.models.heads import head_config, head_spec

PER_HEAD = "tune"
OPTION = "head_options."  # a name behind it is an option of the head
_FIELDS = {f.name for f in dataclasses.fields(TrialConfig)} - {"head", "head_options", "epochs"}


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        """Refuses an empty choice."""
        if not self.values:
            raise ConfigError("Choice: expected a value or more, got none")


@dataclass(frozen=True, slots=True)
class Uniform:
    """Any number between two, both included."""

    low: float
    high: float

    def __post_init__(self) -> None:
        """Refuses an empty range."""
        if not self.low < self.high:
            raise ConfigError(f"Uniform({self.low}, {self.high}): expected low below high")


@dataclass(frozen=True, slots=True)
class LogUniform:
    """Any number between two, as likely between 1 and 2 as between 10 and 20."""

    low: float
    high: float

    def __post_init__(self) -> None:
        """Refuses an empty range."""
        if not 0 < self.low < self.high:
            raise ConfigError(f"LogUniform({self.low}, {self.high}): expected 0 < low < high")


Range = Choice | Uniform | LogUniform


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What the configurations of a study are drawn from, how many, and how they compete."""

    heads: tuple[str, ...] = ()
    """Heads that it is for; empty: any."""
    base: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `TrialConfig`, or `head_options.<name>`, in which every configuration differs from
    the paper's."""
    search: Mapping[str, Range] = field(default_factory=dict)
    """Field, or `head_options.<name>`, → what it is drawn from."""
    sampler: Literal["random", "tpe"] = "random"
    """tpe: Optuna's, which learns from the configurations of the study that are finished."""
    samples: int = 1
    """Configurations of a study."""
    population: int = 8
    """Configurations that are trained over the same stream of bags and halved together."""
    epochs: tuple[int, ...] = ()
    """Budgets. A population is trained for the first; the best go on to the next, trained anew with
    a cosine of that length. Empty: the paper's, for all."""
    keep: int = 3
    """One in so many of a population goes on to the next budget, rounded up."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        for name, least in (("samples", 1), ("population", 1), ("keep", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"space: {name} {getattr(self, name)}: expected {least} or more")
        if list(self.epochs) != sorted(set(self.epochs)) or min(self.epochs, default=1) < 1:
            raise ConfigError(f"space: epochs {self.epochs}: expected rising numbers from 1")
        for name in (*self.base, *self.search):
            if name not in _FIELDS and not name.startswith(OPTION):
                raise ConfigError(
                    f"space: {name!r}: expected {OPTION}<name> or one of "
                    f"{', '.join(sorted(_FIELDS))}. Budgets are set by `epochs`."
                )
        if not self.search and self.samples > 1:
            raise ConfigError("space: samples of a space that searches nothing would all be equal")

    def budgets(self, head: str) -> tuple[int, ...]:
        """Epochs of each round; heads without gradients have nothing to spend more epochs on."""
        if not head_spec(head).trained:
            return (1,)
        return self.epochs or (paper_trial(head).epochs,)


def make_trial(space: Space, head: str, values: Mapping[str, Any], epochs: int) -> TrialConfig:
    """The configuration of drawn values.

    Raises:
        ConfigError: the head has no such option, or a value that it cannot take.
    """
    paper = paper_trial(head)
    options, changes = dict(paper.head_options), {}
    for name, value in {**space.base, **values}.items():
        if name.startswith(OPTION):
            options[name.removeprefix(OPTION)] = value
        else:
            changes[name] = value
    head_config(head, options)
    return dataclasses.replace(paper, head_options=options, epochs=epochs, **changes)


def at_quantile(wanted: Range, share: float) -> Any:
    """The value at a share (0 to 1) of a range."""
    if isinstance(wanted, Choice):
        return wanted.values[min(int(share * len(wanted.values)), len(wanted.values) - 1)]
    if isinstance(wanted, LogUniform):
        low, high = math.log(wanted.low), math.log(wanted.high)
        return math.exp(low + share * (high - low))
    return wanted.low + share * (wanted.high - wanted.low)


def load_space(name: str, head: str) -> Space:
    """The space of that name for a head.

    Raises:
        ConfigError: there is no such file, it has no SPACE, or it is for other heads.
    """
    path = _find(head if name == PER_HEAD else name, name)
    try:
        found = runpy.run_path(str(path)).get("SPACE")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(found, Space):
        raise ConfigError(f"{path}: expected SPACE = Space(…), got {type(found).__name__}.")
    if found.heads and head not in found.heads:
        raise ConfigError(
            f"--space {name}: it is for {', '.join(found.heads)}, not for {head}. Use --space "
            f"{PER_HEAD}, which takes the file of each head."
        )
    return found


def spaces_folder() -> Path:
    """The folder of space files: beside the package when installed, else of the repository."""
    package = Path(mstar.__file__).parent
    installed = package / "tune_spaces"
    return installed if installed.is_dir() else package.parents[1] / "tune_spaces"


def _find(file: str, name: str) -> Path:
    own = Path(file)
    if own.suffix == ".py" and own.is_file():
        return own
    found = spaces_folder() / f"{file}.py"
    if not found.is_file():
        known = sorted(path.stem for path in spaces_folder().glob("*.py"))
        raise ConfigError(
            f"--space {name}: expected {PER_HEAD}, the path of a .py file, or one of "
            f"{', '.join(known) or 'no files'} of {spaces_folder()}. There is no {found.name}."
        )
    return found
