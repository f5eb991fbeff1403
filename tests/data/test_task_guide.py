"""The guide's table of families: every task of the list is in one row, with a command that runs."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from mstar.data.task_registry import read_task_registry
from mstar.downstream.sweep_config import SweepConfig

DOCS = Path(__file__).parents[2] / "platform" / "docs"
ROW = re.compile(r"^\| [\w -]+ \| (\d+–\d+|older list) \| .* \| `(--.*)`.* \| (.*) \|$")


def rows() -> list[tuple[str, str, str]]:
    """Of the table: the tasks' numbers, the flags, the page that says more."""
    found = map(ROW.match, (DOCS / "tasks.md").read_text(encoding="utf-8").splitlines())
    return [(row[1], row[2], row[3]) for row in found if row]


def test_every_task_of_the_list_is_in_one_row() -> None:
    told = [row[0].split("–") for row in rows() if row[0] != "older list"]
    numbers = [at for first, last in told for at in range(int(first), int(last) + 1)]
    assert numbers == list(range(1, 98))


@pytest.mark.parametrize(("numbers", "flags", "page"), rows(), ids=lambda cell: cell[:20])
def test_the_flags_of_a_row_are_those_of_its_tasks(numbers: str, flags: str, page: str) -> None:
    known = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(SweepConfig)}
    assert set(re.findall(r"--[a-z0-9-]+", flags)) <= known
    (group,) = re.findall(r"--tasks (\w+)", flags)
    older = numbers == "older list"
    chosen = read_task_registry("mstar-v1" if older else "mstar-97").select([group])
    if not older:
        first, last = map(int, numbers.split("–"))
        assert [task.number for task in chosen] == list(range(first, last + 1))
    assert chosen
    assert all((DOCS / name).exists() for name in re.findall(r"\(([a-z-]+\.md)\)", page))
