"""A study of a few slides' own features, whose labels alternate; its scores mean nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mstar.data.label_tables import Sample
from mstar.data.task_data import TaskFold
from mstar.downstream.bags import load_bags
from mstar.downstream.config import Study, TrialConfig
from mstar.downstream.study import run_study
from mstar.features.store import FeatureStore
from mstar.schema import SlideRef
from support.planted_tasks import make_task_data


def train_on_store(
    root: Path,
    store: FeatureStore,
    slides: Sequence[SlideRef],
    *,
    study: Study,
    config: TrialConfig,
    fold: TaskFold,
    seeds: tuple[int, ...] = (1,),
) -> None:
    """Run it, with the results in root/R; slides are samples in the order given."""
    samples = [
        Sample(
            case_id=one.slide_id, slides=(one.slide_id,), label=at % 2, time_months=None,
            event=None, row=at + 1, patient=one.slide_id,
        )
        for at, one in enumerate(slides)
    ]  # fmt: skip
    data = make_task_data("classification", samples, (fold,))
    bags = load_bags(samples, store, cache_root=str(root / "cache"))
    run_study(study, data, bags, [config], out=str(root / "R"), seeds=seeds)
