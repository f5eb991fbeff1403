"""Small tasks with a planted truth: in some patches of some bags, features are shifted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mstar.data.label_tables import Match, Sample
from mstar.data.task_data import TaskData, TaskFold
from mstar.data.tasks import Task
from mstar.downstream.bags import PackedBags, load_bags
from mstar.features.files import write_features
from mstar.features.store import FeatureStore
from support.feature_files import toy_grid, toy_provenance

DIM = 16
SHARE, SHIFT = 0.4, 2.0  # of the patches of a bag with the signal, and by how much


def write_store(root: Path, slides: dict[str, np.ndarray]) -> FeatureStore:
    """A feature store of these slides."""
    store = FeatureStore.open_or_create(str(root), {"encoder": "planted", "root": root.name})
    provenance = toy_provenance(store.fingerprint)
    for slide_id, features in slides.items():
        path = root / f"{slide_id}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        # past the store, which waits for the disk after each file
        write_features(path, toy_grid(slide_id, len(features)), features, provenance)
    return store


def planted_rows(rng: np.random.Generator, strength: float, num: int) -> np.ndarray:
    """Rows of which a share is shifted along the first axis by the strength."""
    rows = rng.standard_normal((num, DIM))
    rows[: int(num * SHARE), 0] += SHIFT * strength
    return rng.permutation(rows).astype(np.float16)


def planted_task(
    root: Path,
    kind: str = "classification",
    *,
    cases: int = 60,
    folds: int = 1,
    classes: int = 2,
    patches: tuple[int, int] = (5, 40),
    shuffled: bool = False,
    seed: int = 0,
    strength: float = 1.0,
    most_slides: int = 2,
    **fields: Any,
) -> tuple[TaskData, PackedBags, FeatureStore]:
    """A task, its packed bags and its store; the split is 60:20:20, or a test fold each."""
    rng = np.random.default_rng(seed)
    labels = np.arange(cases) % classes
    told = rng.permutation(labels) if shuffled else labels
    hazard = rng.permutation(labels) if shuffled else labels
    times = rng.exponential(20.0, cases) * np.exp(-4.0 * hazard) + 0.1
    events = rng.random(cases) < 0.7
    slides, samples = {}, []
    for at in range(cases):
        names = [f"c{at:03d}-{number}" for number in range(1 + at % most_slides)]
        for name in names:
            size = int(rng.integers(*patches))
            slides[name] = planted_rows(rng, strength * float(labels[at]), size)
        survival = kind == "survival"
        samples.append(
            Sample(
                case_id=f"c{at:03d}",
                slides=tuple(names),
                label=None if survival else int(told[at]),
                time_months=float(times[at]) if survival else None,
                event=bool(events[at]) if survival else None,
                row=at + 1,
                patient=f"p{at:03d}",
            )
        )
    store = write_store(root / "features", slides)
    data = make_task_data(kind, samples, fold_parts(cases, folds), classes=classes, **fields)
    return data, load_bags(samples, store, cache_root=str(root / "cache")), store


def fold_parts(cases: int, folds: int) -> tuple[TaskFold, ...]:
    """Parts in which all classes come equally often."""
    place = np.arange(cases)
    group = place // 4 % 5  # of five, four neighbours at a time
    made = []
    for number in range(folds):
        test, val = group == number, group == (number + 1) % 5
        parts = {"train": ~(test | val), "val": val, "test": test}
        made.append(TaskFold(name=str(number), **{k: place[v] for k, v in parts.items()}))
    return tuple(made)


def make_task_data(
    kind: str,
    samples: Sequence[Sample],
    folds: tuple[TaskFold, ...],
    *,
    classes: int = 2,
    **fields: Any,
) -> TaskData:
    """Task data of these samples, without a label table."""
    names = tuple(f"class{code}" for code in range(classes)) if kind != "survival" else ()
    task = Task(
        task_id=fields.pop("task_id", "planted"),
        kind=kind,
        metric="c_index" if kind == "survival" else "macro_auc",
        class_names=names,
        trained_on=fields.pop("trained_on", None),
    )
    match = Match(rule="exact", counts={}, rate=1.0, resolved={}, ambiguous={}, missing=())
    given: dict[str, Any] = {
        "digest": "l" * 64,
        "split_digest": "s" * 64,
        "split_source": "the test",
        "label_source": "none",
        "data_source": "generated",
        "dropped": {},
        "leaked_patients": 0,
        "match": match,
    }
    return TaskData(
        task=task,
        samples=tuple(samples),
        patients=tuple(sample.patient for sample in samples),
        folds=folds,
        class_names=names,
        **(given | fields),
    )
