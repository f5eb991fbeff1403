"""The table of all settings of stage 1 in platform/docs/stage1.md, from the config's own words.

python tests/support/settings_table.py      # writes it anew; a test compares
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

import tyro

from mstar.recipes.stage1 import laptop, paper

DOC = Path(__file__).parents[2] / "platform" / "docs" / "stage1.md"
BEGIN, END = "<!-- settings: python tests/support/settings_table.py -->\n", "<!-- /settings -->"


def docstrings(config_class: type[Any]) -> dict[str, str]:
    """What stands under each field of a dataclass, on one line."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(config_class)))
    body = tree.body[0].body  # type: ignore[attr-defined]
    found = {}
    for field, below in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            text = ast.literal_eval(below.value)
            found[field.target.id] = " ".join(text.split())  # type: ignore[union-attr]
    return found


def rows(config: Any, other: Any, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Flag, value in each of two configs, meaning; nested configs in the place of their field."""
    texts = docstrings(type(config))
    hints = get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        left, right = getattr(config, field.name), getattr(other, field.name)
        if dataclasses.is_dataclass(left):
            bare = "name=''" in repr(hints[field.name])
            yield from rows(left, right, prefix if bare else f"{prefix}{field.name}.")
            continue
        flag = f"--{prefix}{field.name}".replace("_", "-")
        if left is True:
            flag = f"--{prefix}no-{field.name}".replace("_", "-")
        yield flag, shown(left), shown(right), texts[field.name]


def shown(value: Any) -> str:
    """A value as one types it."""
    if value is tyro.MISSING:
        return "(needed)"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{value}`"


def settings_table() -> str:
    """The whole table."""
    lines = ["| flag | `paper` | `laptop` | meaning |", "|---|---|---|---|"]
    for flag, left, right, text in rows(paper(), laptop()):
        lines.append(f"| `{flag}` | {left} | {'' if left == right else right} | {text} |")
    return "\n".join(lines) + "\n"


def with_table(text: str) -> str:
    """The document with the table of today."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{settings_table()}{END}{after}"


if __name__ == "__main__":
    DOC.write_text(with_table(DOC.read_text()))
