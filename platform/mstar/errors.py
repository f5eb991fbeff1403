"""Every error this package raises on purpose, in one tree.

MstarError
├── ConfigError            the caller's flags, recipes or manifest are wrong
│   ├── ManifestError      a row or column of a slide manifest
│   └── TableError         a row or column of any other table
├── CohortError            cases, slides, reports or expression contradict one another
│   └── SplitError         a split leaks, or is not the one that was used before
├── StorageError           a disk or object store did not do what was asked
├── SlideError             one slide cannot be used; the rest of the cohort can
│   ├── SkippedSlideError  left out because the caller asked for that
│   ├── MppError           its resolution is missing, absurd or contradictory
│   └── PatchError         one of its patches cannot be read
├── FeatureError           a grid or feature file is not what it should be
│   └── StoreMismatchError a store already holds another configuration
├── WeightsError           encoder weights are missing, wrong or not what they claim
├── CheckpointError        a checkpoint is missing, broken or of another run
├── TrainingError          a training run cannot go on: NaN, too many bad cases, no pairs
├── WorkerError            the workers of a job failed, through no slide's fault
└── InterruptedRunError    the run was told to stop; what is written stays valid

A message says what is wrong, for which slide or address, what was expected and found, and the way
out.
`transient` tells a rerun whether trying again can help: storage, memory and node trouble can pass,
a broken file cannot.
"""

from typing import ClassVar


class MstarError(Exception):
    """Root of every error raised on purpose."""

    transient: ClassVar[bool] = False


class ConfigError(MstarError):
    """The caller's flags, recipe or manifest cannot be used."""


class ManifestError(ConfigError):
    """A slide manifest has a wrong row or column."""


class TableError(ConfigError):
    """A table of cases, reports, labels, expression or splits has a wrong row or column."""


class CohortError(MstarError):
    """The cases, slides, reports and expression of a cohort contradict one another."""


class SplitError(CohortError):
    """A split leaks patients, or is not the one that earlier work was cut from."""


class StorageError(MstarError):
    """A disk or object store failed, after the retries that could help."""

    transient: ClassVar[bool] = True


class SlideError(MstarError):
    """One slide cannot be used."""


class SkippedSlideError(SlideError):
    """A slide is left out, as the caller asked for; it is no failure."""


class MppError(SlideError):
    """A slide's microns per pixel are missing, absurd or contradictory."""


class PatchError(SlideError):
    """One patch of a slide cannot be read."""


class FeatureError(MstarError):
    """A grid or feature file is not what it should be."""


class StoreMismatchError(FeatureError):
    """A store folder already holds features of another configuration."""


class WeightsError(MstarError):
    """Encoder weights are missing, wrong or not what they claim to be."""


class CheckpointError(MstarError):
    """A checkpoint is missing, broken or belongs to another run."""


class TrainingError(MstarError):
    """A training run cannot go on, through its data or its settings."""


class WorkerError(MstarError):
    """The workers of a job failed through no slide's fault: memory, GPU, node or a bug."""

    transient: ClassVar[bool] = True


class InterruptedRunError(MstarError):
    """The run was told to stop before it was done."""

    transient: ClassVar[bool] = True
