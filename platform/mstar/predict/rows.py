"""The columns of a case: what the models say, calibrated."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mstar.api import Head, Prediction
from mstar.features.store import FeatureStore
from mstar.predict.temperature import calibrated

SURVIVAL_MONTHS = (12, 24, 36, 60)


def cases_of(
    slides: Mapping[str, FeatureStore], case_of: Mapping[str, str], *, by_case: bool
) -> dict[str, list[str]]:
    """Row name → its slides, in the order of the slides."""
    rows: dict[str, list[str]] = {}
    for slide in slides:
        rows.setdefault(case_of.get(slide, slide) if by_case else slide, []).append(slide)
    return rows


def score_columns(said: Prediction, head: Head, temperature: float | None) -> dict[str, Any]:
    """What trained heads say of a case."""
    if head.classes:
        return class_columns(head.classes, said.scores, temperature)
    return _risk(said, head)


def class_columns(
    classes: tuple[str, ...], scores: Any, temperature: float | None = None
) -> dict[str, Any]:
    """The class, a score of each, and the same at the temperature where there is one."""
    found: dict[str, Any] = {"predicted": classes[int(scores.argmax())]}
    found |= {f"score_{name}": float(x) for name, x in _pairs(classes, scores)}
    if temperature is not None:
        probabilities = calibrated(scores[None], temperature)[0]
        found |= {f"calibrated_{name}": float(x) for name, x in _pairs(classes, probabilities)}
    return found


def _risk(said: Prediction, head: Head) -> dict[str, Any]:
    medians = [m.facts["median_risk"] for m in head.models if m.facts["median_risk"] is not None]
    risk = float(said.scores[0])
    found: dict[str, Any] = {"risk": risk}
    if medians:
        found["risk_group"] = "high" if risk > float(np.mean(medians)) else "low"
    if said.survival is not None:
        months, survival = said.survival.T
        steps = np.concatenate([[1.0], survival])
        for month in SURVIVAL_MONTHS:
            if month <= months[-1]:
                at = np.searchsorted(months, month, side="right")
                found[f"survival_{month}_months"] = float(steps[at])
        found["survival_curve"] = ";".join(f"{m:.2f}:{s:.4f}" for m, s in said.survival)
    return found


def _pairs(classes: tuple[str, ...], values: Any) -> Iterator[tuple[str, float]]:
    return zip(classes, values, strict=True)
