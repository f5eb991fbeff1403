"""Label tables for the tests of tasks: written as text, as users write them."""

from pathlib import Path

from mstar.data.splits.registry import SplitRegistry, SplitRow
from mstar.data.tasks import Task


def binary_task(**fields: object) -> Task:
    """A task of two classes."""
    given = {
        "task_id": "ours",
        "kind": "classification",
        "metric": "macro_auc",
        "class_names": ("wildtype", "mutated"),
        "split_policy": "own",
    }
    return Task(**given | fields)  # type: ignore[arg-type]


def survival_task(**fields: object) -> Task:
    """A task of times and events."""
    given = {"task_id": "ours", "kind": "survival", "metric": "c_index", "split_policy": "own"}
    return Task(**given | fields)  # type: ignore[arg-type]


def write_lines(folder: Path, name: str, *lines: str) -> str:
    """A table of these lines, its address."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def some_registry(parts: dict[str, str], *, seen: tuple[str, ...] = ()) -> SplitRegistry:
    """A registry of these parts; pretraining sees train, and cases without part that are `seen`."""
    rows = tuple(
        SplitRow(case_id=case, cohort="GEN", part=part, pretraining=part == "train" or case in seen)
        for case, part in sorted(parts.items())
    )
    return SplitRegistry(name="mstar", seed=0, rows=rows, cases_digest="0" * 64)
