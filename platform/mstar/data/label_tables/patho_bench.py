"""Patho-Bench's tables: one row a slide, a label column of any name, a column a fold.

    <source>/<task>/k=all.tsv    case_id, slide_id, <label>, fold_0 … with train, val, test, or -1
    <source>/<task>/config.yaml  task_col: the label column; label_dict: number → name of a class

Survival has the columns <name>_event and <name>_days. Numbers in the label column mean what
`label_dict` says, and the task row says which code that class has: a number is never a code.
"""

import re
from typing import Any

from mstar.data.label_tables.samples import INDEX_NAMES, LabelRow, Rows, folds_of, shared
from mstar.data.tables import Column, column_names, read_table
from mstar.data.tasks import Task
from mstar.errors import TableError
from mstar.storage import objects

DAYS_PER_MONTH = 365.25 / 12
_FOLD = re.compile(r"fold_(\d+)")
_PAIR = re.compile(r"""^\s*['"]?(?P<key>[^:'"]+?)['"]?\s*:\s*['"]?(?P<value>.*?)['"]?\s*$""")


def is_patho_bench(names: list[str]) -> bool:
    """Whether a header is Patho-Bench's."""
    return shared(names, ("case_id", "slide_id")) and any(_FOLD.fullmatch(n) for n in names)


def read_patho_bench(uri: str, task: Task) -> Rows:
    """A Patho-Bench table of the task."""
    names = [name for name in column_names(uri) if name not in INDEX_NAMES]
    config = read_config(objects.join(uri.rpartition("/")[0] or ".", "config.yaml"))
    folds = {name: name.removeprefix("fold_") for name in names if _FOLD.fullmatch(name)}
    plain = [Column(name=name) for name in ("case_id", "slide_id")]
    plain += [Column(name=name, nullable=True) for name in folds]
    if task.has_survival_labels:
        return _survival(uri, names, plain, folds)
    label = _label_column(uri, names, task, config)
    called = config.get("label_dict", {})
    rows = []
    for row, cells in enumerate(read_table(uri, [*plain, Column(name=label)]).to_pylist()):
        rows.append(_row(uri, row, cells, folds, label=called.get(cells[label], cells[label])))
    return Rows(
        dialect="patho-bench", rows=tuple(rows), folds=tuple(folds.values()), label=label,
        fold=next(iter(folds)),
    )  # fmt: skip


def read_config(uri: str) -> dict[str, Any]:
    """`task_col` and `label_dict` of a config.yaml; nothing where there is no such file.

    These two keys are looked for, in block or flow style; it is no YAML parser.
    """
    try:
        lines = objects.read_bytes(uri).decode().splitlines()
    except FileNotFoundError:
        return {}
    found: dict[str, Any] = {}
    for at, line in enumerate(lines):
        match = _PAIR.match(line.partition(" #")[0])
        if match is None or line[:1].isspace():
            continue
        if match["key"] == "task_col":
            found["task_col"] = match["value"]
        elif match["key"] == "label_dict":
            flow = match["value"].strip("{} ")
            block = [text for text in lines[at + 1 : _end_of_block(lines, at + 1)] if text.strip()]
            found["label_dict"] = _pairs(flow.split(",") if flow else block)
    return found


def _end_of_block(lines: list[str], start: int) -> int:
    """The first line from `start` on that is not indented."""
    outside = (at for at in range(start, len(lines)) if lines[at][:1].strip())
    return next(outside, len(lines))


def _pairs(parts: list[str]) -> dict[str, str]:
    matches = (_PAIR.match(part.partition(" #")[0]) for part in parts)
    return {match["key"]: match["value"] for match in matches if match}


def _survival(uri: str, names: list[str], plain: list[Column], folds: dict[str, str]) -> Rows:
    ends = {end: [name for name in names if name.endswith(end)] for end in ("_days", "_event")}
    if any(len(columns) != 1 for columns in ends.values()):
        raise TableError(
            f"{uri}: expected one column <name>_days and one <name>_event, got {', '.join(names)}. "
            "Keep the columns of this task alone."
        )
    (days,), (event,) = ends["_days"], ends["_event"]
    columns = [*plain, Column(name=days, kind="number"),
               Column(name=event, kind="integer", allowed=("0", "1"))]  # fmt: skip
    rows = []
    for row, cells in enumerate(read_table(uri, columns).to_pylist()):
        months = cells[days] / DAYS_PER_MONTH
        rows.append(_row(uri, row, cells, folds, time_months=months, event=str(cells[event])))
    return Rows(
        dialect="patho-bench", rows=tuple(rows), folds=tuple(folds.values()), time=days,
        event=event, fold=next(iter(folds)),
    )  # fmt: skip


def _row(uri: str, row: int, cells: dict[str, Any], folds: dict[str, str], **of: Any) -> LabelRow:
    """One row, with what else is known of it."""
    return LabelRow(
        row=row,
        case_id=cells["case_id"],
        slides=(cells["slide_id"],),
        folds=folds_of(uri, row, cells, folds),
        **of,
    )


def _label_column(uri: str, names: list[str], task: Task, config: dict[str, Any]) -> str:
    """As config.yaml says, as the task is called, or the only column that is left."""
    left = [n for n in names if n not in ("case_id", "slide_id") and not _FOLD.fullmatch(n)]
    for name in (config.get("task_col"), task.task_id, task.endpoint, "label"):
        if name in left:
            return str(name)
    if len(left) == 1:
        return left[0]
    shown = ", ".join(left or names)
    raise TableError(
        f"{uri}: expected one label column besides the ids and folds, got {shown}. Put the task's "
        "config.yaml (task_col) beside the table, or keep the column of this task alone."
    )
