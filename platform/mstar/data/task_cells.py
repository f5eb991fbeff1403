"""Cells of a task table that hold more than one value."""

import re
from collections.abc import Sequence

from mstar.data.tables import bad_cell

_COUNTED = re.compile(r"(?P<name>.+):(?P<count>[0-9]+)")


def parse_classes(uri: str, row: int, text: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and counts of `IDC:787|ILC:198`; no counts for `low|high`."""
    if not text:
        return (), ()
    parts = text.split("|")
    matches = [match for part in parts if (match := _COUNTED.fullmatch(part))]
    names = tuple(match["name"] for match in matches) if matches else tuple(parts)
    if len(matches) not in (0, len(parts)) or not all(names) or len(set(names)) < len(names):
        expected = "different names joined by |, with `:count` after each or after none"
        raise bad_cell(uri, row, "classes", expected, text, "Write it like IDC:787|ILC:198.")
    return names, tuple(int(match["count"]) for match in matches)


def parse_aliases(
    uri: str, row: int, text: str, names: Sequence[str]
) -> tuple[tuple[str, str], ...]:
    """Pairs of `tumor=metastasis`; each other name stands for one class, and is none itself."""
    pairs = [part.partition("=")[::2] for part in text.split("|")] if text else []
    others = [other for other, _ in pairs]
    wrong = len(set(others)) < len(others) or any(
        not other or other in names or (names and name not in names) for other, name in pairs
    )
    if wrong:
        expected = "other=class joined by |, each other name once and no class itself"
        raise bad_cell(uri, row, "label_aliases", expected, text, "Write it like pos=positive.")
    return tuple(pairs)


def check_pattern(uri: str, row: int, pattern: str) -> None:
    """Raises TableError when it is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        expected = f"a regular expression ({error})"
        raise bad_cell(uri, row, "patient_pattern", expected, pattern, "Correct it.") from error
