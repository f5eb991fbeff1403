"""The split registry of a cohort: the one place that says who is trained, validated and tested on.

    C/splits.csv    case_id, cohort, part (train, val, test or empty), pretraining (0 or 1)
    C/splits.json   name, seed, settings, counts, digest of the rows, digest of the case table

Every task of the cohort is cut from it, and what is computed from a cut carries its digest. A case
without a part belongs to pretraining only.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

import mstar
from mstar.config import to_dict
from mstar.data.cases import Case
from mstar.data.splits.frozen import (
    REGISTRY_STEM,
    SplitFile,
    read_facts,
    read_frozen,
    rows_digest,
    write_frozen,
)
from mstar.data.splits.leaks import PARTS, check_known, check_one_part, named, part_name
from mstar.data.tables import Column
from mstar.errors import SplitError

_COLUMNS = (
    Column(name="case_id", unique=True),
    Column(name="cohort"),
    Column(name="part", nullable=True),
    Column(name="pretraining", kind="integer", allowed=("0", "1")),
)
Unassigned = Literal["error", "train", "drop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRow:
    """One case: the cohort it is split in, its part (empty: none), whether pretraining sees it."""

    case_id: str
    cohort: str
    part: str
    pretraining: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRegistry:
    """Part and pretraining flag of every case.

    rows: sorted by case id.
    config: the settings that made it.
    cases_digest: of the case table it was made from.
    counts: what was counted while it was made, as JSON values.
    """

    name: str
    seed: int
    rows: tuple[SplitRow, ...]
    cases_digest: str
    config: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The sha256 of the rows: what outputs that were cut from the registry store."""
        return rows_digest(_table(self.rows))

    @property
    def pretraining(self) -> frozenset[str]:
        """The cases that pretraining sees."""
        return frozenset(row.case_id for row in self.rows if row.pretraining)

    def cut(
        self, case_ids: Iterable[str], *, unassigned: Unassigned = "error"
    ) -> dict[str, tuple[str, ...]]:
        """The cases of a task by part: train, val and test, each in the order given.

        Args:
            case_ids: the cases that the task has labels for.
            unassigned: what becomes of cases without a part: an error, training cases (they are
                seen in pretraining at most) or left out.

        Raises:
            SplitError: a case is not in the registry, or has no part and that is an error.
        """
        ids = list(dict.fromkeys(case_ids))
        part_of = {row.case_id: row.part for row in self.rows}
        unknown = [case for case in ids if case not in part_of]
        if unknown:
            raise SplitError(
                f"split registry {self.name}: {named(unknown)} are not in it. Correct the ids, or "
                "place new cases with `mstar cohort split C --preset mstar --extend`."
            )
        without = [case for case in ids if not part_of[case]]
        if without and unassigned == "error":
            raise SplitError(
                f"split registry {self.name}: {named(without)} have no part, they belong to "
                "pretraining. Leave them out, or take them for training only."
            )
        part_of |= dict.fromkeys(without, "train" if unassigned == "train" else "")
        return {part: tuple(case for case in ids if part_of[case] == part) for part in PARTS}

    def check_digest(self, expected: str) -> None:
        """Raises SplitError unless this is the registry that earlier work was cut from."""
        if expected != self.digest:
            raise SplitError(
                f"split registry {self.name}: expected the one with digest {expected[:12]}, as "
                f"before, got {self.digest[:12]}. Put the former one back (a replaced one lies in "
                "splits/replaced/), or make anew what was cut from it."
            )

    def check_cases(self, cases: Iterable[Case]) -> None:
        """Raises SplitError unless the case table has every case of the registry and no other."""
        table = list(cases)
        check_known((row.case_id for row in self.rows), table, f"split registry {self.name}")
        new = {case.case_id for case in table} - {row.case_id for row in self.rows}
        if new:
            raise SplitError(
                f"split registry {self.name}: {named(new)} of the case table are not in it. Place "
                "them with `mstar cohort split C --preset mstar --extend`."
            )


def cases_digest(cases: Iterable[Case]) -> str:
    """The sha256 of a case table, whatever the order of its rows."""
    lines = sorted(json.dumps(to_dict(case), sort_keys=True) for case in cases)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_registry(folder: str) -> SplitRegistry:
    """The split registry of a cohort folder, checked against its digest.

    Raises:
        SplitError: there is none, it was edited, or it contradicts itself.
    """
    file = registry_file(folder)
    table, facts = read_frozen(file)
    rows = tuple(
        SplitRow(
            case_id=row["case_id"],
            cohort=row["cohort"],
            part=part_name(row["part"], f"{file.csv}, column part") if row["part"] else "",
            pretraining=bool(row["pretraining"]),
        )
        for row in table.to_pylist()
    )
    try:
        registry = SplitRegistry(
            rows=tuple(sorted(rows, key=lambda row: row.case_id)),
            **{key: facts[key] for key in ("name", "seed", "config", "counts", "cases_digest")},
        )
    except KeyError as error:
        raise SplitError(f"{file.json}: expected a field {error}. Put it back.") from error
    check_registry(registry)
    return registry


def write_registry(
    folder: str, registry: SplitRegistry, *, replace: str = "", only_adds: bool = False
) -> bool:
    """Write a registry once; see `write_frozen` for what happens when there is one already."""
    check_registry(registry)
    facts = {
        "name": registry.name,
        "seed": registry.seed,
        "config": to_dict(registry.config),
        "counts": to_dict(registry.counts),
        "cases_digest": registry.cases_digest,
        "mstar_version": mstar.__version__,
    }
    table = _table(registry.rows)
    return write_frozen(registry_file(folder), table, facts, replace=replace, only_adds=only_adds)


def has_registry(folder: str) -> bool:
    """Whether a cohort folder has a split registry."""
    return read_facts(registry_file(folder)) is not None


def registry_file(folder: str) -> SplitFile:
    """Where the registry of a cohort lies."""
    return SplitFile(folder=folder, stem=REGISTRY_STEM, columns=_COLUMNS, keys=("case_id",))


def check_registry(registry: SplitRegistry) -> None:
    """Raises SplitError when patients are in two parts, or pretraining sees validation or test."""
    where = f"split registry {registry.name}"
    placed = [row for row in registry.rows if row.part]
    check_one_part(((row.case_id, row.part) for row in placed), where)
    leaked = {row.case_id for row in placed if row.part != "train" and row.pretraining}
    if leaked:
        raise SplitError(
            f"{where}: {named(leaked)} of validation and test are marked for pretraining. Make the "
            "registry anew with `mstar cohort split`."
        )


def _table(rows: Iterable[SplitRow]) -> pa.Table:
    ordered = sorted(rows, key=lambda row: row.case_id)
    return pa.table(
        {
            "case_id": pa.array([row.case_id for row in ordered], pa.string()),
            "cohort": pa.array([row.cohort for row in ordered], pa.string()),
            "part": pa.array([row.part or None for row in ordered], pa.string()),
            "pretraining": pa.array([int(row.pretraining) for row in ordered], pa.int64()),
        }
    )
