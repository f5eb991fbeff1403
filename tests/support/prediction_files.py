"""Prediction files of invented studies: models that know the label by a stated strength."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mstar.downstream.predictions import PredictionFacts, Predictions, write_predictions

CLASSES = ("negative", "positive")


def classification(
    task: str,
    encoder: str = "initial",
    head: str = "abmil",
    *,
    signal: float = 1.0,
    cases: int = 60,
    classes: Sequence[str] = CLASSES,
    folds: Sequence[str] = ("0",),
    seeds: Sequence[int] = (1,),
    part: str = "test",
    labels: Sequence[int] | None = None,
    prefix: str = "",
    **facts: Any,
) -> Predictions:
    """Probabilities; the cases and labels of a task are the same for all encoders and heads."""
    truth = np.random.default_rng(_number(task))
    everybody = truth.integers(0, len(classes), cases) if labels is None else np.asarray(labels)
    owner = truth.integers(0, len(folds), len(everybody)) if part == "test" else None
    columns: dict[str, list[Any]] = {name: [] for name in ("fold", "seed", "case", "label")}
    scores = []
    for at, fold in enumerate(folds):
        own = np.arange(len(everybody)) if owner is None else np.flatnonzero(owner == at)
        for seed in seeds:
            rng = np.random.default_rng([_number(task + encoder + head), at, seed])
            logits = rng.normal(size=(len(own), len(classes)))
            logits += signal * np.eye(len(classes))[everybody[own]]
            scores.append(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
            columns["fold"] += [fold] * len(own)
            columns["seed"] += [seed] * len(own)
            columns["case"] += [f"{prefix or task}-{number:04d}" for number in own]
            columns["label"] += everybody[own].tolist()
    given = {"kind": "classification", "metric": "macro_auc", "class_names": tuple(classes)}
    return _predictions((task, encoder, head, part), columns, np.concatenate(scores), given | facts)


def survival(
    task: str,
    encoder: str = "initial",
    head: str = "abmil",
    *,
    signal: float = 1.0,
    cases: int = 60,
    folds: Sequence[str] = ("0",),
    seeds: Sequence[int] = (1,),
    part: str = "test",
    censored: float = 0.4,
    prefix: str = "",
    **facts: Any,
) -> Predictions:
    """One risk; a share of the cases is censored, 1 for all of them."""
    truth = np.random.default_rng(_number(task))
    hazard = truth.normal(size=cases)
    times = truth.exponential(20 * np.exp(-hazard)) + 0.1
    events = truth.random(cases) >= censored
    columns: dict[str, list[Any]] = {name: [] for name in ("fold", "seed", "case", "time", "event")}
    scores, medians = [], {}
    for at, fold in enumerate(folds):
        own = np.arange(cases) if part != "test" else np.arange(cases)[at :: len(folds)]
        for seed in seeds:
            rng = np.random.default_rng([_number(task + encoder + head), at, seed])
            scores.append((signal * hazard[own] + rng.normal(size=len(own)))[:, None])
            medians[f"{fold}/{seed}"] = 0.1
            columns["fold"] += [fold] * len(own)
            columns["seed"] += [seed] * len(own)
            columns["case"] += [f"{prefix or task}-{number:04d}" for number in own]
            columns["time"] += times[own].tolist()
            columns["event"] += events[own].tolist()
    given: dict[str, Any] = {"kind": "survival", "metric": "c_index", "median_risk": medians}
    given["follow_up"] = {fold: float(times.max()) for fold in folds}
    return _predictions((task, encoder, head, part), columns, np.concatenate(scores), given | facts)


def write_study(out: Path, predictions: Predictions) -> str:
    """The file where a sweep writes it."""
    folder = out / predictions.task / predictions.encoder / predictions.head
    uri = str(folder / f"predictions-{predictions.part}.parquet")
    write_predictions(uri, predictions)
    return uri


def _predictions(
    names: tuple[str, str, str, str],
    columns: Mapping[str, list[Any]],
    scores: np.ndarray,
    facts: Mapping[str, Any],
) -> Predictions:
    task, encoder, head, part = names
    rows = len(columns["case"])
    return Predictions(
        task=task,
        encoder=encoder,
        head=head,
        part=part,
        fold=tuple(columns["fold"]),
        seed=np.asarray(columns["seed"], np.int64),
        case_id=tuple(columns["case"]),
        patient=tuple(columns["case"]),
        slides=tuple((f"{case}-S1",) for case in columns["case"]),
        label=np.asarray(columns.get("label", [-1] * rows), np.int32),
        time_months=np.asarray(columns.get("time", [np.nan] * rows), np.float64),
        event=np.asarray(columns.get("event", [False] * rows), np.bool_),
        scores=scores.astype(np.float32),
        facts=PredictionFacts(**{"data_source": "real", **facts}),
    )


def _number(text: str) -> int:
    return int.from_bytes(text.encode()[-12:], "big") % 2**31
