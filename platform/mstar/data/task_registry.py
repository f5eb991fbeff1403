"""Lists of tasks to choose from: those of the package, with the rows of users added.

    mstar-97   the 97 tasks of the paper, and the auxiliary tasks that train heads for some of them
    mstar-v1   the older list of 43 (arXiv v1 and v2), with its own rows and splits

    registry = read_task_registry("mstar-97", own=["my_tasks.csv"])
    registry.select(["survival", "tcga_brca_path_subtype"])

A row of a user with a new id is a task more. One with an id of the package fills in what the
package leaves empty (class names that are not published, say) and can change nothing else.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from mstar.data.tables import bad_cell
from mstar.data.tasks import Task, check_trained_on, read_task_rows
from mstar.errors import ConfigError

REGISTRIES = {"mstar-97": ("tasks.csv", "tasks_auxiliary.csv"), "mstar-v1": ("tasks_v1.csv",)}
DEFAULT = "mstar-97"
ALL = "all"

_GROUPED_BY = ("kind", "category", "application_type", "regime", "unit", "access", "dataset")
_FREE = ("number", "label_aliases", "notes", "patient_pattern")  # a user's row may set these
_DEFAULTS = Task(task_id="", kind="", metric="")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRegistry:
    """Tasks in order.

    tasks: those that are listed and chosen from.
    auxiliary: those that are trained when an external task needs their head, and listed apart.
    """

    name: str
    tasks: tuple[Task, ...]
    auxiliary: tuple[Task, ...] = ()

    @property
    def by_id(self) -> Mapping[str, Task]:
        """Every task, auxiliary ones too."""
        return {task.task_id: task for task in (*self.tasks, *self.auxiliary)}

    @property
    def groups(self) -> Mapping[str, tuple[Task, ...]]:
        """Name of a group → its tasks: kinds, categories, types, regimes, units, data sets.

        Ordinal tasks are in `classification` too.
        """
        found: dict[str, list[Task]] = {}
        for task in self.tasks:
            names = [getattr(task, column) for column in _GROUPED_BY]
            names += ["classification"] if task.kind == "ordinal" else []
            for name in dict.fromkeys(names):
                found.setdefault(name, []).append(task)
        return {name: tuple(tasks) for name, tasks in found.items() if name}

    def get(self, task_id: str) -> Task:
        """The task of an id.

        Raises:
            ConfigError: there is none; names the nearest.
        """
        known = self.by_id
        if task_id not in known:
            raise ConfigError(self._unknown(task_id, known))
        return known[task_id]

    def select(self, wanted: Iterable[str]) -> tuple[Task, ...]:
        """The tasks of ids, groups or `all`, each once, in the registry's order.

        Raises:
            ConfigError: a name is neither; names the nearest.
        """
        known, groups = self.by_id, self.groups
        chosen: set[str] = set()
        for name in _names(wanted):
            if name == ALL:
                chosen |= {task.task_id for task in self.tasks}
            elif name in known:
                chosen.add(name)
            elif name in groups:
                chosen |= {task.task_id for task in groups[name]}
            else:
                raise ConfigError(self._unknown(name, [*known, *groups, ALL]))
        return tuple(task for task in known.values() if task.task_id in chosen)

    def with_required(self, tasks: Iterable[Task]) -> tuple[Task, ...]:
        """The tasks and before each the one whose head it takes, each once."""
        known = self.by_id
        ordered: dict[str, Task] = {}
        for task in tasks:
            chain = [task]
            while chain[0].trained_on is not None and len(chain) <= len(known):
                chain.insert(0, known[chain[0].trained_on])
            ordered |= {link.task_id: link for link in chain if link.task_id not in ordered}
        return tuple(ordered.values())

    def _unknown(self, name: str, known: Iterable[str]) -> str:
        near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        return (
            f"task {name!r}: expected an id or a group of {self.name}, or `{ALL}`.{hint} "
            "`mstar tasks list` lists them; --own adds a table of your own rows."
        )


def read_task_registry(name: str = DEFAULT, own: Sequence[str] = ()) -> TaskRegistry:
    """A registry of the package and the rows of users' own tables.

    Args:
        name: one of REGISTRIES.
        own: addresses of task tables.

    Raises:
        ConfigError: there is no such registry.
        TableError: a row of a user's is not what it should be.
    """
    if name not in REGISTRIES:
        raise ConfigError(f"--registry {name!r}: expected one of {', '.join(REGISTRIES)}.")
    folder = Path(__file__).parent
    listed, *apart = (read_task_rows(str(folder / file)) for file in REGISTRIES[name])
    tasks = {task.task_id: task for task in listed}
    auxiliary = {task.task_id: task for rows in apart for task in rows}
    for uri in own:
        rows = read_task_rows(uri)
        for row, task in enumerate(rows):
            apart_from_list = task.task_id in auxiliary or task.regime == "training_only"
            home = auxiliary if apart_from_list else tasks
            before = home.get(task.task_id)
            home[task.task_id] = task if before is None else _filled_in(uri, row, before, task)
        check_trained_on(uri, rows, tasks.keys() | auxiliary.keys())
    registry = TaskRegistry(
        name=name, tasks=tuple(tasks.values()), auxiliary=tuple(auxiliary.values())
    )
    return replace(registry, tasks=tuple(_with_classes(registry, task) for task in registry.tasks))


def _filled_in(uri: str, row: int, before: Task, given: Task) -> Task:
    """The packaged task with what the user's row adds to it."""
    added = {}
    for field in fields(Task):
        old, new = getattr(before, field.name), getattr(given, field.name)
        default = getattr(_DEFAULTS, field.name)
        if field.name in ("task_id", "class_counts") or new in (old, default):
            continue
        if old != default and field.name not in _FREE:
            column = "classes" if field.name == "class_names" else field.name
            expected = f"{old!r} as the registry has it"
            way_out = "Leave the cell empty, or give the row an id of its own."
            raise bad_cell(uri, row, column, expected, new, way_out)
        added[field.name] = new
    filled = replace(before, **added)
    unknown = [name for _, name in filled.label_aliases if name not in filled.class_names]
    if unknown:
        expected = f"names for {', '.join(filled.class_names) or 'classes, which it has not'}"
        raise bad_cell(uri, row, "label_aliases", expected, unknown[0], "Correct the class.")
    return filled


def _with_classes(registry: TaskRegistry, task: Task) -> Task:
    """An external task without class names has those of the task that it takes the head of."""
    known = registry.by_id
    if task.trained_on is None or task.class_names or not task.has_class_labels:
        return task
    return replace(task, class_names=known[task.trained_on].class_names)


def _names(wanted: Iterable[str]) -> list[str]:
    """The names in words that may be joined by commas."""
    return [name.strip() for word in wanted for name in word.split(",") if name.strip()]
