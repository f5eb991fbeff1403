"""Slides, their texture features, and a study trained on them, for heatmaps of trained models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mstar.data.task_data import TaskFold
from mstar.downstream.config import Study, TrialConfig
from mstar.embed.assembly import EmbedPlan
from mstar.embed.config import EmbedConfig, RunConfig
from mstar.embed.here import embed_here
from mstar.evidence.config import HeatmapConfig
from mstar.features.store import FeatureStore
from mstar.models.patch_encoders import prepare_weights
from mstar.schema import SlideRef
from mstar.storage.manifest import read_slides
from support.slides import SlideSpec, write_slide
from support.store_study import train_on_store

SLIDES = 4
STUDY = Study(task_id="planted", encoder="texture", head="clam_mb")
HEAD = TrialConfig(
    head="clam_mb", head_options={"hidden": 8, "attention_dim": 4}, epochs=1, lr=1e-2
)
FOLD = TaskFold(name="0", train=np.arange(2), val=np.arange(2, 4), test=np.arange(2, 4))


@dataclass(frozen=True, kw_only=True)
class EvidenceWorld:
    """Where everything lies."""

    root: Path
    store: FeatureStore

    @property
    def slides(self) -> Path:
        """Their folder."""
        return self.root / "slides"

    @property
    def model(self) -> Path:
        """The finished study."""
        return self.root / "R" / STUDY.key

    def config(self, out: Path, **fields: Any) -> HeatmapConfig:
        """Heatmaps of all slides from the store, with their files."""
        quiet = {"tracking": False, "max_failures": fields.pop("max_failures", "0")}
        quiet["dry_run"] = fields.pop("dry_run", False)
        given: dict[str, Any] = {
            "model": str(self.model),
            "out": str(out),
            "features": (self.store.root,),
            "slide_files": str(self.slides),
            "where": "here",
            "k": 2,
            "run": RunConfig(**quiet),
        }
        return HeatmapConfig(**given | fields)


def spec_of(number: int) -> SlideSpec:
    """Slides of different sizes and tissue; their ids are s0, s1 and so on."""
    return SlideSpec(width=1200 + 128 * number, height=1024, seed=number)


def write_evidence_world(root: Path) -> EvidenceWorld:
    """Slides, features, and a study of one epoch, whose scores mean nothing."""
    for number in range(SLIDES):
        write_slide(root / "slides" / f"s{number}.svs", spec_of(number))
    store, found = embed_folder(str(root / "slides"), root / "F")
    train_on_store(root, store, found, study=STUDY, config=HEAD, fold=FOLD, seeds=(0, 1))
    return EvidenceWorld(root=root, store=store)


def embed_folder(slides: str, out: Path) -> tuple[FeatureStore, list[SlideRef]]:
    """Texture features of slides, in this process."""
    config = EmbedConfig(
        slides=slides, out=str(out), encoder="texture", device="cpu", precision="float32",
        batch_size=32, run=RunConfig(tracking=False),
    )  # fmt: skip
    plan = EmbedPlan(
        config=config, run_id="t", weights=prepare_weights("texture", None), device="cpu",
        precision="float32", batch_size=32, torch_threads=1, reader_threads=1,
    )  # fmt: skip
    found = [one for one in read_slides(slides) if isinstance(one, SlideRef)]
    store, _ = embed_here(plan, found)
    return store, found
