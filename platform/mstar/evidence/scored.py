"""What scores the patches of a bag, and what comes of it.

A scorer says beforehand what it is (`identity`: what must not change within an output folder), and
of every bag its layers and what they rest on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mstar.api import Bag
from mstar.errors import ConfigError
from mstar.evidence.config import ALL_CLASSES
from mstar.evidence.explain import RawLayer
from mstar.features.files import SlideFeatures

SIMILARITY = "similarity"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredBag:
    """What a bag's patches got; layers: of all of them, predicted: a class, if there is one."""

    layers: tuple[RawLayer, ...]
    predicted: str
    facts: dict[str, Any]


@runtime_checkable
class Scorer(Protocol):
    """Scores bags."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What made the scores: equal for equal scores."""

    @property
    def unit(self) -> str:
        """What is one bag: slide or case."""

    @property
    def expected(self) -> Mapping[str, Any] | None:
        """The configuration of its features; None: any of the right length."""

    def score(self, name: str, slides: Sequence[SlideFeatures], *, rna: str = "") -> ScoredBag:
        """The layers of the patches of some slides, one after another.

        name: of the case. rna: its row of gene expression, where that has another name.
        """


def bag_of(slides: Sequence[SlideFeatures]) -> Bag:
    """The bag of some slides that were read."""
    sizes = [len(slide.features) for slide in slides]
    return Bag(
        features=np.concatenate([slide.features for slide in slides]),
        coords_l0=np.concatenate([slide.grid.coords for slide in slides]),
        slides=tuple(slide.grid.slide_id for slide in slides),
        slide_of=np.repeat(np.arange(len(slides)), sizes),
    )


def check_classes(asked: Sequence[str], known: Sequence[str]) -> None:
    """Raises ConfigError for a class that no layer can be of."""
    unknown = [name for name in asked if name not in known and name != ALL_CLASSES]
    if unknown:
        raise ConfigError(
            f"--classes {unknown[0]}: expected one of {', '.join(known) or 'none'}, or all"
        )
