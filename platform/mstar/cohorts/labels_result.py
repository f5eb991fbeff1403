"""What became of each task of `mstar labels build`, and its counts beside the published ones."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from mstar.data.label_build.derive import Derived
from mstar.data.labels import ClassLabel, Label
from mstar.data.tasks import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Counts of a table beside those of the task list.

    unit: what is counted.
    samples: here, and as published (None: unpublished).
    classes: class → here, and as published.
    events: of a survival task.
    """

    unit: str
    samples: tuple[int, int | None]
    classes: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    events: int | None = None

    @property
    def differs(self) -> bool:
        """Whether a published number is another one."""
        pairs = [self.samples, *self.classes.values()]
        return any(published is not None and here != published for here, published in pairs)

    @property
    def is_published(self) -> bool:
        """Whether there is any number to compare with."""
        return any(p is not None for _, p in (self.samples, *self.classes.values()))


def compare(task: Task, labels: Sequence[Label]) -> Comparison:
    """The counts of a table beside the published ones."""
    found = Counter(label.label for label in labels if isinstance(label, ClassLabel))
    published: Sequence[int | None] = task.class_counts or (None,) * len(task.class_names)
    pairs = zip(task.class_names, published, strict=True)
    events = [label.event for label in labels if not isinstance(label, ClassLabel)]
    return Comparison(
        unit=task.unit,
        samples=(len(labels), task.num_samples),
        classes={name: (found[name], count) for name, count in pairs},
        events=sum(events) if events else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOutcome:
    """What became of one task.

    state: built | no files | no derivation | no labels needed | failed
    """

    task: Task
    state: str
    reason: str = ""
    derived: Derived = field(default_factory=Derived)
    comparison: Comparison | None = None
    files: tuple[str, ...] = ()
