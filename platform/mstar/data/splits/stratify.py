"""Puts cases into parts, stratum by stratum, from their ids and a seed alone.

Within a stratum cases are ordered by a hash of (seed, purpose, case id) and cut into consecutive
runs. So the order of rows cannot matter, and a case that is added moves at most the cases next to
the cuts, never all that come after it.

What holds (and is tested):
- in every stratum each part gets its quota (size × ratio) rounded down or up, so no part differs
  from its quota by a whole case;
- over all strata each part differs from its quota by less than one case too: what one stratum
  rounds away is owed to the part in the next; parts of equal ratio (folds) differ by one at most.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from mstar.errors import ConfigError

Strata = Mapping[str, tuple[str, ...]]  # case → the stratum that it belongs to


def hash_order(case_ids: Iterable[str], seed: int, purpose: str) -> list[str]:
    """The cases in an order that depends on their ids, the seed and the purpose only.

    purpose: another text gives an independent order.
    """
    start = hashlib.sha256(f"{json.dumps([seed, purpose])}\n".encode())

    def key(case_id: str) -> bytes:
        digest = start.copy()
        digest.update(case_id.encode())
        return digest.digest()

    return sorted(case_ids, key=key)


def survival_strata(
    survival: Mapping[str, tuple[float, int]], *, bins: int, seed: int, within: str
) -> dict[str, tuple[str, ...]]:
    """Event × quantile of the time, among the cases with the same event status.

    Quantiles are by rank: of n cases with one status each bin holds n / bins, rounded. Cases with
    one and the same time at a border are told apart by their hash.

    Args:
        survival: case → (months, 1 for an event or 0 for censoring).
        bins: quantile bins for either status.
        seed: of the split.
        within: what these cases have in common; becomes the first word of their strata.
    """
    strata: dict[str, tuple[str, ...]] = {}
    for status in (0, 1):
        alike = [case for case, (_, event) in survival.items() if event == status]
        by_time = sorted(hash_order(alike, seed, "time"), key=lambda case: survival[case][0])
        for rank, case in enumerate(by_time):
            strata[case] = (within, f"event {status}", f"time bin {rank * bins // len(by_time)}")
    return strata


def assign(
    strata: Strata, ratio: Mapping[str, float], *, seed: int, purpose: str
) -> dict[str, str]:
    """Case → part, by the rules above.

    Args:
        strata: case → its stratum.
        ratio: part → its share; shares are taken relative to their sum.
        seed: of the split.
        purpose: separates this assignment from others with the same seed.
    """
    members = _members(strata)
    names = sorted(members)
    counts = apportion([len(members[name]) for name in names], list(ratio.values()))
    parts: dict[str, str] = {}
    for name, row in zip(names, counts, strict=True):
        ordered = hash_order(members[name], seed, purpose)
        runs = [part for part, count in zip(ratio, row, strict=True) for _ in range(count)]
        parts |= dict(zip(ordered, runs, strict=True))
    return parts


def extend(
    kept: Mapping[str, str], strata: Strata, ratio: Mapping[str, float], *, seed: int, purpose: str
) -> dict[str, str]:
    """Like `assign`, but cases that have a part keep it; each new one goes where most is owed.

    Args:
        kept: case → part, as it was; cases that are in no stratum any more are kept too.
        strata: case → its stratum, old and new cases.
        ratio: part → its share.
        seed: of the split.
        purpose: as in `assign`.
    """
    parts = dict(kept)
    members = _members(strata)
    shares = dict(zip(ratio, _shares(list(ratio.values())), strict=True))
    total = {part: sum(parts.get(case) == part for case in strata) for part in ratio}
    for name in sorted(members):
        here = {part: sum(parts.get(case) == part for case in members[name]) for part in ratio}
        for case in hash_order(set(members[name]) - set(kept), seed, purpose):
            size = sum(here.values()) + 1
            owed = {part: (shares[part] * size - here[part], -total[part]) for part in ratio}
            best = max(ratio, key=lambda part: owed[part])
            parts[case] = best
            here[best] += 1
            total[best] += 1
    return parts


def apportion(sizes: Sequence[int], ratio: Sequence[float]) -> list[list[int]]:
    """How many cases of each stratum go to each part: [stratum][part], rows sum to the sizes."""
    shares = _shares(ratio)
    owed = [Fraction(0)] * len(shares)
    counts = []
    for size in sizes:
        quotas = [size * share for share in shares]
        row = [int(quota) for quota in quotas]
        owed = [debt + quota - count for debt, quota, count in zip(owed, quotas, row, strict=True)]
        open_parts = [part for part, quota in enumerate(quotas) if quota.denominator > 1]
        most_owed = sorted(open_parts, key=lambda part: (-owed[part], part))
        for part in most_owed[: size - sum(row)]:
            row[part] += 1
            owed[part] -= 1
        counts.append(row)
    return counts


def _shares(ratio: Sequence[float]) -> list[Fraction]:
    """Exact shares of what was written: 0.7 is 7/10, on every machine."""
    exact = [Fraction(repr(float(share))) for share in ratio if 0 <= share < float("inf")]
    if len(exact) != len(ratio) or not sum(exact):
        shown = " ".join(f"{share:g}" for share in ratio)
        raise ConfigError(f"ratio {shown}: expected shares of 0 or more, as 0.7 0.1 0.2.")
    return [share / sum(exact) for share in exact]


def _members(strata: Strata) -> dict[tuple[str, ...], list[str]]:
    members: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for case, stratum in strata.items():
        members[stratum].append(case)
    return members
