"""Small inputs of `mstar targets`: a cohort, its features, and an aggregator that knows them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mstar.data.cases import Case, write_cases
from mstar.data.targets import TargetStore
from mstar.features.store import FeatureStore
from mstar.models.aggregator import Aggregator, AggregatorConfig
from mstar.models.stage1_files import save_aggregator
from mstar.pretrain.targets_config import TargetsConfig
from mstar.recipes.targets import laptop
from support.feature_files import CONFIG, toy_grid, toy_provenance

DIM, TARGET_DIM, WINDOW = 12, 8, 16
# case → slide → patches
SLIDES = {f"c{i}": {f"c{i}-s{k}": 5 + 7 * i + 11 * k for k in range(1 + i % 3)} for i in range(6)}
NUM_SLIDES = sum(map(len, SLIDES.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetInputs:
    """Where the inputs lie: cohort folder, feature store, aggregator."""

    cohort: Path
    features: Path
    aggregator: Path

    def config(self, out: Path | str, **fields: Any) -> TargetsConfig:
        """The laptop recipe on them, nothing tracked and no shards; run settings by name too."""
        config = replace(
            laptop(),
            cohort=str(self.cohort),
            features=str(self.features),
            aggregator=str(self.aggregator),
            out=str(out),
            shards=False,
        )
        run_names = set(type(config.run).__slots__)
        run_fields = {k: fields.pop(k) for k in list(fields) if k in run_names}
        run = replace(config.run, **{"tracking": False, **run_fields})
        return replace(config, run=run, **fields)


def write_target_inputs(
    folder: Path,
    slides: Mapping[str, Mapping[str, int]],
    *,
    dim: int = DIM,
    mode: str = "public",
    bag_patches: int | None = WINDOW,
) -> TargetInputs:
    """A cohort of the cases named, each with its slides' numbers of patches.

    Args:
        folder: where to.
        slides: case id → slide id → patches.
        dim: length of a patch's features.
        mode: of the aggregator.
        bag_patches: the bag size that its stage 1 had; None for an export that says nothing.
    """
    made = TargetInputs(cohort=folder / "c", features=folder / "f", aggregator=folder / "a")
    write_cases(
        str(made.cohort / "cases.csv"),
        [Case(case_id=k, cancer_type="LUAD", slides=tuple(v)) for k, v in slides.items()],
    )
    store = FeatureStore.open_or_create(str(made.features), {**CONFIG, "dim": dim})
    for of_case in slides.values():
        for slide_id, num in of_case.items():
            write_features(store, slide_id, features_of(slide_id, num, dim))
    write_aggregator(made.aggregator, store.fingerprint, dim=dim, mode=mode, bag=bag_patches)
    return made


def features_of(slide_id: str, num: int, dim: int = DIM) -> np.ndarray:
    """A slide's features: rows that are all different, the same for the same slide."""
    seed = int.from_bytes(hashlib.sha256(slide_id.encode()).digest()[:4], "little")
    return np.random.default_rng(seed).standard_normal((num, dim)).astype(np.float16)


def write_features(store: FeatureStore, slide_id: str, values: np.ndarray) -> None:
    """One slide's features under the store's own fingerprint."""
    provenance = toy_provenance(fingerprint=store.fingerprint)
    assert store.write(slide_id, toy_grid(slide_id, num=len(values)), values, provenance)


def write_aggregator(
    folder: Path,
    features_fingerprint: str,
    *,
    dim: int = DIM,
    mode: str = "public",
    bag: int | None = WINDOW,
    seed: int = 0,
) -> None:
    """An aggregator as stage 1 exports it."""
    config = AggregatorConfig(
        input_dim=dim,
        dim=TARGET_DIM,
        heads=2,
        landmarks=4,
        mode=mode,  # type: ignore[arg-type]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        aggregator = Aggregator(config)
    provenance = {
        "config": {"bag_patches": bag},
        "inputs": {"features": features_fingerprint, "splits": ""},
    }
    save_aggregator(str(folder), aggregator, provenance=provenance if bag else None)


def digests(out: Path) -> dict[str, str]:
    """Name → sha256 of every target file, and of the store's record."""
    root = out / "targets"
    files = [*root.rglob("*.h5"), root / "targets.json"]
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files)
    }


def done(out: Path) -> set[str]:
    """The slides whose targets are there."""
    return set(TargetStore.open(str(out)).slide_ids())
