"""Findings that are known to be true of cases, and the phrases by which a text names them.

    facts.csv           case_id, fact, level      what is true: GEN-S01-000003, grade, 2
    fact_phrases.csv    fact, level, phrase       words that say so, as often as there are ways

A generated cohort has them in truth/; anyone can write them for real reports. A text names a level
when the words of one of its phrases stand in it one after another; a fact named at two levels is
told wrongly unless it is told rightly alone. Facts of the kind `group` (cancer_type) are what
everything else is compared within: they are no findings themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mstar.data.tables import Column, read_table
from mstar.downstream.report_generation.words import words_of
from mstar.storage import objects

FACTS, PHRASES, GROUP = "facts.csv", "fact_phrases.csv", "cancer_type"

Told = Mapping[str, frozenset[str]]
"""Fact → the levels that a text names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FactCounts:
    """What a set of texts says of the facts of its cases, a number a case.

    right: told at the true level alone. chance: the same, were the text that of another case of
    the group, in the mean over those. told: named at all. true: known of the case.
    """

    right: Float[np.ndarray, " case"]
    chance: Float[np.ndarray, " case"]
    told: Float[np.ndarray, " case"]
    true: Float[np.ndarray, " case"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Known facts and their phrases.

    levels: case → fact → level. phrases: fact → level → phrases, as words joined by blanks.
    """

    levels: Mapping[str, Mapping[str, str]]
    phrases: Mapping[str, Mapping[str, tuple[str, ...]]]

    @property
    def findings(self) -> tuple[str, ...]:
        """The facts that are counted."""
        return tuple(fact for fact in self.phrases if fact != GROUP)

    def told(self, text: str) -> Told:
        """What a text names."""
        said = f" {' '.join(words_of(text))} "
        return {
            fact: frozenset(
                level for level, ways in own.items() if any(f" {way} " in said for way in ways)
            )
            for fact, own in self.phrases.items()
        }

    def count(self, cases: Sequence[str], texts: Sequence[str]) -> FactCounts:
        """The counts of each case, chance being that within its group."""
        told = [self.told(text) for text in texts]
        truth = [self.levels.get(case, {}) for case in cases]
        groups = [own.get(GROUP, "") for own in truth]
        right = np.asarray([self._right(t, own) for t, own in zip(told, truth, strict=True)])
        chance = right.astype(np.float64)
        for at, group in enumerate(groups):
            others = [told[o] for o, its in enumerate(groups) if its == group and o != at]
            if others:
                chance[at] = np.mean([self._right(other, truth[at]) for other in others])
        known = [[fact for fact in self.findings if fact in own] for own in truth]
        return FactCounts(
            right=right.astype(np.float64),
            chance=chance,
            told=np.asarray(
                [sum(bool(t[f]) for f in own) for t, own in zip(told, known, strict=True)], float
            ),
            true=np.asarray([len(own) for own in known], float),
        )

    def _right(self, told: Told, truth: Mapping[str, str]) -> int:
        return sum(told[fact] == {truth[fact]} for fact in self.findings if fact in truth)


def find_facts(folder: str) -> Facts | None:
    """The facts of a folder; None where it has none.

    Raises:
        TableError: a column is missing.
    """
    uris = [objects.join(folder, name) for name in (FACTS, PHRASES)]
    if not all(objects.exists(uri) for uri in uris):
        return None
    text = tuple(Column(name=name) for name in ("case_id", "fact", "level", "phrase"))
    levels: dict[str, dict[str, str]] = {}
    for row in read_table(uris[0], text[:3]).to_pylist():
        levels.setdefault(row["case_id"], {})[row["fact"]] = row["level"]
    phrases: dict[str, dict[str, tuple[str, ...]]] = {}
    for row in read_table(uris[1], text[1:]).to_pylist():
        own = phrases.setdefault(row["fact"], {})
        words = " ".join(words_of(row["phrase"]))
        own[row["level"]] = (*own.get(row["level"], ()), words)
    return Facts(levels=levels, phrases=phrases)
