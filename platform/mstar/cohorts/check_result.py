"""What a check of a cohort found, as one value that the screen, the JSON and the figure show."""

from collections.abc import Mapping
from dataclasses import dataclass

from mstar.cohorts.check_features import Patches
from mstar.cohorts.check_problems import Problem
from mstar.data.modalities import PairCounts

Combination = tuple[bool, bool, bool]  # WSI, report, RNA

ALL, USABLE, PRETRAINING = "all cases", "usable", "pretraining"


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeCounts:
    """Cases of one cancer type, and how many of them the registry validates or tests on."""

    cases: int
    held_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortCheck:
    """Counts and problems of one cohort.

    data_source: real or generated, as cohort.json states.
    cancer_types: by code, the most frequent first.
    num_slides: slides of cases.
    num_genes: of the expression store, 0 without one.
    pairs: the modality pairs of all cases as the table names them; of those usable, without what
        problems take away; of the usable ones that pretraining sees, where there is a registry.
    overlap: cases by the modalities that can be used.
    registry_digest: of the split registry, empty without one.
    """

    cohort: str
    data_source: str
    cancer_types: Mapping[str, TypeCounts]
    num_slides: int
    patches: Patches
    num_genes: int
    num_label_tables: int
    pairs: Mapping[str, PairCounts]
    overlap: Mapping[Combination, int]
    registry_digest: str
    problems: tuple[Problem, ...]

    @property
    def num_errors(self) -> int:
        """Kinds of problems that make data unusable."""
        return sum(problem.severity == "error" for problem in self.problems)
