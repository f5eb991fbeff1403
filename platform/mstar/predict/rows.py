"""One row a case: what the models say, calibrated, with everything that it rests on."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mstar import __version__
from mstar.api import Bag, Head, Prediction
from mstar.downstream.config import CLASSIFICATION
from mstar.downstream.model_files import model_digest
from mstar.downstream.predictions import read_predictions
from mstar.features.store import FeatureStore
from mstar.predict.temperature import calibrated, fit_temperature
from mstar.storage import objects

WARNING = "research software: not for decisions about a patient"
SURVIVAL_MONTHS = (12, 24, 36, 60)
VALIDATION = "predictions-val.parquet"


def temperature_of(model: str, head: Head) -> float | None:
    """The temperature of a classifying study; None where its validation predictions are absent."""
    uri = objects.join(model, VALIDATION)
    if head.training != CLASSIFICATION or model.endswith(".safetensors"):
        return None
    if not objects.exists(uri):
        return None
    told = read_predictions(uri)
    return fit_temperature(told.scores, told.label.astype(np.int64))


def cases_of(
    slides: Mapping[str, FeatureStore], case_of: Mapping[str, str], *, by_case: bool
) -> dict[str, list[str]]:
    """Row name → its slides, in the order of the slides."""
    rows: dict[str, list[str]] = {}
    for slide in slides:
        rows.setdefault(case_of.get(slide, slide) if by_case else slide, []).append(slide)
    return rows


def row_of(
    name: str, bag: Bag, said: Prediction, head: Head, temperature: float | None
) -> dict[str, Any]:
    """The columns of a case."""
    row: dict[str, Any] = {
        "case_id": name,
        "slides": ";".join(bag.slides),
        "num_patches": len(bag),
        **(_classes(said, head, temperature) if head.classes else _risk(said, head)),
    }
    return {**row, **stamp(head), "warning": WARNING}


def stamp(head: Head) -> dict[str, str]:
    """What made a row."""
    study = head.models[0].facts["study"]
    digests = sorted(model_digest(model.fit)[:12] for model in head.models)
    return {
        "task": study["task_id"],
        "encoder": study["encoder"],
        "head": study["head"],
        "models": ";".join(digests),
        "mstar_version": __version__,
    }


def _classes(said: Prediction, head: Head, temperature: float | None) -> dict[str, Any]:
    found: dict[str, Any] = {"predicted": head.classes[int(said.scores.argmax())]}
    found |= {f"score_{name}": float(x) for name, x in _pairs(head, said.scores)}
    if temperature is not None:
        probabilities = calibrated(said.scores[None], temperature)[0]
        found |= {f"calibrated_{name}": float(x) for name, x in _pairs(head, probabilities)}
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


def _pairs(head: Head, values: Any) -> Iterator[tuple[str, float]]:
    return zip(head.classes, values, strict=True)
