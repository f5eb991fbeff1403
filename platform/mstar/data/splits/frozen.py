"""A split on disk: `X.csv` with the rows, `X.json` with their digest and what made them.

A frozen split is never overwritten silently. Writing the same rows again changes nothing; other
rows are refused with the cases that would change, unless the caller names the digest of the split
that is to go. That one is kept as `splits/replaced/X-<digest>.csv` and `.json`, because outputs cut
from it carry its digest.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mstar.data.tables import Column, read_table, write_table
from mstar.errors import SplitError
from mstar.storage import objects

REGISTRY_STEM = "splits"
_SHOWN = 5
_SHORT = 12  # hex digits of a digest that messages show, and the fewest that name one


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitFile:
    """Where a split lies and what its table looks like.

    folder: the cohort folder.
    stem: path below it without suffix: `splits`, `splits/NAME`.
    columns: of the table.
    keys: the columns that name a row; what the others hold is what can change.
    """

    folder: str
    stem: str
    columns: tuple[Column, ...]
    keys: tuple[str, ...]

    @property
    def csv(self) -> str:
        """Address of the table."""
        return objects.join(self.folder, f"{self.stem}.csv")

    @property
    def json(self) -> str:
        """Address of the digest and the facts."""
        return objects.join(self.folder, f"{self.stem}.json")


def rows_digest(table: pa.Table) -> str:
    """The sha256 of the rows, whatever their order: header, then sorted rows, as JSON lines."""
    rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
    lines = sorted(map(json.JSONEncoder(ensure_ascii=False).encode, rows))
    text = "\n".join([json.dumps(table.column_names), *lines])
    return hashlib.sha256(text.encode()).hexdigest()


def read_frozen(file: SplitFile) -> tuple[pa.Table, dict[str, Any]]:
    """The rows and the facts of a split; `facts["digest"]` is that of the rows.

    Raises:
        SplitError: there is none, or the table was edited after it was made.
        TableError: the table is malformed.
    """
    facts = read_facts(file)
    if facts is None:
        raise SplitError(
            f"{file.csv}: expected a split with its digest in {file.json}, found none. "
            f"Make it: mstar cohort split {file.folder} --preset mstar (or --scheme … --name …)."
        )
    table = read_table(file.csv, file.columns)
    found = rows_digest(table)
    if found != facts["digest"]:
        raise SplitError(
            f"{file.csv}: its rows have digest {found[:_SHORT]}, {file.json} states "
            f"{facts['digest'][:_SHORT]}: the table was edited, or comes from elsewhere. Put the "
            "two files back as they were made, or remove both and make the split anew."
        )
    return table, facts


def read_facts(file: SplitFile) -> dict[str, Any] | None:
    """What the JSON of a split holds; None when there is no such split."""
    try:
        facts = json.loads(objects.read_bytes(file.json))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise SplitError(f"{file.json}: expected JSON, got {error}. Put it back.") from error
    if not isinstance(facts, dict) or not isinstance(facts.get("digest"), str):
        raise SplitError(f"{file.json}: expected an object with a digest. Put it back.")
    return facts


def write_frozen(
    file: SplitFile,
    table: pa.Table,
    facts: Mapping[str, Any],
    *,
    replace: str = "",
    only_adds: bool = False,
) -> bool:
    """Write a split once; the digest is added to the facts.

    Args:
        file: where.
        table: the rows.
        facts: what made them.
        replace: the digest of the split that may be replaced (its first 12 digits or more).
        only_adds: rows may be added to the one that is there, but none may change.

    Returns:
        False when these very rows are there already; nothing is written then.

    Raises:
        SplitError: other rows are there, and the caller did not name their digest.
    """
    digest = rows_digest(table)
    document = json.dumps({**facts, "digest": digest}, indent=1, sort_keys=True, ensure_ascii=False)
    old = _old_rows(file)
    if old is not None:
        old_digest = rows_digest(old)
        if old_digest == digest and read_facts(file) is not None:
            return False
        changes = _changes(old, table, file.keys)
        if old_digest != digest and not (only_adds and all(c.kind == "new" for c in changes)):
            _refuse_unless_named(file, old_digest, changes, len(old), replace)
        _keep(file, old, old_digest)
    write_table(file.csv, table)
    objects.write_whole(file.json, document.encode())
    return True


@dataclass(frozen=True, slots=True)
class _Change:
    key: str
    kind: str  # new | gone | "before → after"


def _old_rows(file: SplitFile) -> pa.Table | None:
    """The rows that are there, with or without a digest beside them."""
    if read_facts(file) is not None:
        return read_frozen(file)[0]
    return read_table(file.csv, file.columns) if objects.exists(file.csv) else None


def _changes(old: pa.Table, new: pa.Table, keys: Sequence[str]) -> list[_Change]:
    before, after = _by_key(old, keys), _by_key(new, keys)
    changes = []
    for key in sorted(before.keys() | after.keys()):
        if key not in before or key not in after:
            changes.append(_Change(key, "new" if key in after else "gone"))
        elif before[key] != after[key]:
            changes.append(_Change(key, f"{before[key]} → {after[key]}"))
    return changes


def _by_key(table: pa.Table, keys: Sequence[str]) -> dict[str, str]:
    """Key → the rest of the row as words; the case id comes first in the key."""
    rows = table.to_pylist()
    return {
        " ".join(str(row[key]) for key in keys): "/".join(
            "-" if value is None else str(value) for name, value in row.items() if name not in keys
        )
        for row in rows
    }


def _refuse_unless_named(
    file: SplitFile, digest: str, changes: Sequence[_Change], size: int, replace: str
) -> None:
    if len(replace) >= _SHORT and digest.startswith(replace):
        return
    shown = ", ".join(f"{change.key} ({change.kind})" for change in changes[:_SHOWN])
    more = f" and {len(changes) - _SHOWN:,} more" if len(changes) > _SHOWN else ""
    new = sum(change.kind == "new" for change in changes)
    extend = "add --extend to place only new cases, " if file.stem == REGISTRY_STEM else ""
    raise SplitError(
        f"{file.csv}: a split with digest {digest[:_SHORT]} is there ({size:,} rows); this one "
        f"differs in {len(changes):,} rows, {new:,} of them new: {shown}{more}. Outputs cut from "
        f"it carry its digest. Repeat its settings to keep it, {extend}or replace it with "
        f"--replace {digest[:_SHORT]} (a copy is kept)."
    )


def _keep(file: SplitFile, old: pa.Table, digest: str) -> None:
    """Copy a split that goes; its JSON goes first, so that no reader takes half of each."""
    facts = read_facts(file)
    if facts is None:
        return
    name = f"splits/replaced/{file.stem.rpartition('/')[2]}-{digest[:_SHORT]}"
    write_table(objects.join(file.folder, f"{name}.csv"), old)
    text = json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=False)
    objects.write_whole(objects.join(file.folder, f"{name}.json"), text.encode())
    objects.delete(file.json)
