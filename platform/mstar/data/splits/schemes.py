"""Further splits of a cohort, made from its cases or from those of a label table.

    survival, label   one fold, train : val : test by a ratio, stratified
    kfold             every case is tested once; validation is a share of the other folds
    site              every site is tested once: leave-one-site-out; validation as in kfold
    external          every case is tested: a cohort that other models are brought to

They lie in `C/splits/NAME.csv` (fold, case_id, part) and `.json`, frozen as the registry is.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

import mstar
from mstar.config import to_dict
from mstar.data.cases import Case
from mstar.data.splits.frozen import SplitFile, read_frozen, rows_digest, write_frozen
from mstar.data.splits.leaks import (
    HELD_OUT,
    PARTS,
    check_known,
    check_one_part,
    check_tested_once,
    check_unseen,
    named,
    part_name,
)
from mstar.data.splits.registry import SplitRegistry
from mstar.data.splits.stratify import Strata, assign
from mstar.data.tables import Column
from mstar.errors import ConfigError, SplitError
from mstar.storage.ids import slide_id_problem

_COLUMNS = (
    Column(name="fold", kind="integer"),
    Column(name="case_id"),
    Column(name="part"),
)
ONE_TEST_EACH = ("kfold", "site")  # schemes in which every patient is tested in one fold


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """One fold: a name (of the site, or a number) and the part of every case."""

    name: str
    parts: Mapping[str, str]

    def cases_of(self, part: str) -> tuple[str, ...]:
        """The cases of train, val or test, sorted."""
        return tuple(sorted(case for case, at in self.parts.items() if at == part))


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A named split: one fold or several.

    facts: settings, the registry's digest and counts, as JSON values.
    """

    name: str
    scheme: str
    folds: tuple[Fold, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The sha256 of the rows: what outputs that were cut from the split store."""
        return rows_digest(_table(self))

    @property
    def held_out(self) -> frozenset[str]:
        """The cases that any fold validates or tests on."""
        folds = (fold.parts.items() for fold in self.folds)
        return frozenset(case for parts in folds for case, part in parts if part in HELD_OUT)

    def check_digest(self, expected: str) -> None:
        """Raises SplitError unless this is the split that earlier work was cut from."""
        if expected != self.digest:
            raise SplitError(
                f"split {self.name}: expected the one with digest {expected[:12]}, as before, got "
                f"{self.digest[:12]}. Put the former one back (a replaced one lies in "
                "splits/replaced/), or make anew what was cut from it."
            )


def by_ratio(strata: Strata, ratio: Sequence[float], *, seed: int) -> tuple[Fold, ...]:
    """One fold, stratified: by survival or by label, as the strata are."""
    shares = dict(zip(PARTS, ratio, strict=True))
    return (Fold(name="0", parts=assign(strata, shares, seed=seed, purpose="parts")),)


def k_fold(strata: Strata, *, folds: int, val_share: float, seed: int) -> tuple[Fold, ...]:
    """Stratified folds; each is tested once, `val_share` of the others validates.

    Raises:
        ConfigError: fewer than two folds, or more folds than cases.
    """
    if not 2 <= folds <= len(strata):
        raise ConfigError(f"--folds {folds}: expected 2 to {len(strata):,}, the number of cases.")
    names = [f"{number:0{len(str(folds - 1))}}" for number in range(folds)]
    ratio = dict.fromkeys(names, 1.0)
    return _one_out(assign(strata, ratio, seed=seed, purpose="folds"), strata, val_share, seed)


def leave_one_site_out(
    strata: Strata,
    sites: Mapping[str, str],
    *,
    min_site_cases: int,
    val_share: float,
    seed: int,
) -> tuple[Fold, ...]:
    """A fold per site, sorted by name; sites with fewer cases stay in training.

    Raises:
        ConfigError: fewer than two sites, or none that is large enough.
    """
    sizes = Counter(sites[case] for case in strata)
    if len(sizes) < 2 or max(sizes.values()) < min_site_cases:
        raise ConfigError(
            f"leave-one-site-out: expected two sites or more, one with {min_site_cases:,} cases, "
            f"got {len(sizes)}: {', '.join(f'{s} {n}' for s, n in sizes.most_common(5))}. Fill the "
            "column site of the case table, or lower --min-site-cases."
        )
    place = {case: sites[case] if sizes[sites[case]] >= min_site_cases else "" for case in strata}
    return _one_out(place, strata, val_share, seed)


def external(case_ids: Iterable[str]) -> tuple[Fold, ...]:
    """Everything is tested: models come from elsewhere."""
    return (Fold(name="0", parts=dict.fromkeys(case_ids, "test")),)


def label_strata(labels: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """A stratum per label.

    Raises:
        ConfigError: the labels look like measurements, so that strata would hold one case each.
    """
    different = len(set(labels.values()))
    if different > max(20, len(labels) // 2):
        raise ConfigError(
            f"label column: expected classes, got {different:,} different labels of "
            f"{len(labels):,} cases. Name another --label-column, or bin the values."
        )
    return {case: (label,) for case, label in labels.items()}


def check_split(split: Split) -> None:
    """Raises SplitError when a patient is in two parts of a fold, or is tested in two folds."""
    for fold in split.folds:
        check_one_part(fold.parts.items(), f"split {split.name}, fold {fold.name}")
    if split.scheme in ONE_TEST_EACH:
        tests = {fold.name: fold.cases_of("test") for fold in split.folds}
        check_tested_once(tests, f"split {split.name}")


def check_against(
    split: Split, cases: Iterable[Case], registry: SplitRegistry | None = None
) -> None:
    """Raises SplitError when the case table lacks its cases, or pretraining sees those held out.

    What was made with --allow-seen may be seen.
    """
    where = f"split {split.name}"
    check_known({case for fold in split.folds for case in fold.parts}, cases, where)
    if registry is not None and not split.facts.get("config", {}).get("allow_seen", False):
        check_unseen(split.held_out, registry.pretraining, where)


def write_split(folder: str, split: Split, *, replace: str = "") -> bool:
    """Write a split once; see `write_frozen` for what happens when there is one already."""
    check_split(split)
    facts = {
        **to_dict(split.facts),
        "name": split.name,
        "scheme": split.scheme,
        "folds": [fold.name for fold in split.folds],
        "mstar_version": mstar.__version__,
    }
    return write_frozen(split_file(folder, split.name), _table(split), facts, replace=replace)


def read_split(folder: str, name: str) -> Split:
    """A split of a cohort folder, checked against its digest.

    Raises:
        SplitError: there is none, it was edited, or it contradicts itself.
    """
    file = split_file(folder, name)
    table, facts = read_frozen(file)
    if not {"scheme", "folds"} <= facts.keys():
        raise SplitError(f"{file.json}: expected fields scheme and folds. Put it back.")
    folds: list[dict[str, str]] = [{} for _ in facts["folds"]]
    for row in table.to_pylist():
        if row["fold"] not in range(len(folds)) or row["case_id"] in folds[row["fold"]]:
            raise SplitError(
                f"{file.csv}: case {row['case_id']} comes twice in fold {row['fold']}, or the fold "
                f"is none of the {len(folds)} of {file.json}. Make the split anew."
            )
        folds[row["fold"]][row["case_id"]] = part_name(row["part"], f"{file.csv}, column part")
    named_folds = zip(facts["folds"], folds, strict=True)
    split = Split(
        name=name,
        scheme=facts["scheme"],
        folds=tuple(Fold(name=fold, parts=parts) for fold, parts in named_folds),
        facts={key: value for key, value in facts.items() if key not in ("digest", "folds")},
    )
    check_split(split)
    return split


def split_file(folder: str, name: str) -> SplitFile:
    """Where a split of a cohort lies.

    Raises:
        ConfigError: the name cannot be one of a file.
    """
    problem = slide_id_problem(name) or ("it holds a folder" if "/" in name else None)
    if problem:
        raise ConfigError(f"--name {name!r}: {problem}. Use letters, digits, - and _.")
    keys = ("case_id", "fold")
    return SplitFile(folder=folder, stem=f"splits/{name}", columns=_COLUMNS, keys=keys)


def check_complete(known: Mapping[str, str | None], what: str, way_out: str) -> dict[str, str]:
    """The values, none of them missing; raises SplitError that names the cases without one."""
    missing = [case for case, value in known.items() if value is None]
    if missing:
        raise SplitError(f"{named(missing)} have no {what}. {way_out}")
    return {case: value for case, value in known.items() if value is not None}


def _one_out(
    place: Mapping[str, str], strata: Strata, val_share: float, seed: int
) -> tuple[Fold, ...]:
    """A fold per place; the empty place is never tested."""
    if not 0 <= val_share < 1:
        raise ConfigError(f"--val-share {val_share:g}: expected 0 up to, not including, 1.")
    ratio = {"train": 1 - val_share, "val": val_share}
    folds = []
    for name in sorted(set(place.values()) - {""}):
        rest = {case: stratum for case, stratum in strata.items() if place[case] != name}
        parts = assign(rest, ratio, seed=seed, purpose=f"val of {name}")
        parts |= {case: "test" for case in strata if place[case] == name}
        folds.append(Fold(name=name, parts=parts))
    return tuple(folds)


def _table(split: Split) -> pa.Table:
    rows = sorted(
        (number, case, part)
        for number, fold in enumerate(split.folds)
        for case, part in fold.parts.items()
    )
    return pa.table(
        {
            "fold": pa.array([number for number, _, _ in rows], pa.int64()),
            "case_id": pa.array([case for _, case, _ in rows], pa.string()),
            "part": pa.array([part for _, _, part in rows], pa.string()),
        }
    )
