"""The encoders of a sweep: their stores, and which slides have features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mstar.config import fingerprint
from mstar.downstream.sweep_config import SweepConfig
from mstar.downstream.tasks_job import parse_features
from mstar.errors import ConfigError
from mstar.features.store import FeatureStore
from mstar.storage import objects


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """The features of one encoder.

    sizes: slide → bytes of its file.
    stores: their fingerprints: what made the features.
    """

    name: str
    roots: tuple[str, ...]
    sizes: Mapping[str, int]
    stores: tuple[str, ...]


def find_encoders(config: SweepConfig) -> dict[str, Encoder]:
    """The encoders of `--features` that `--encoders` takes, their stores listed."""
    given = parse_features(config.features)
    wanted = [name for word in config.encoders for name in word.split(",") if name] or list(given)
    if unknown := [name for name in wanted if name not in given]:
        raise ConfigError(
            f"--encoders {unknown[0]}: expected labels of --features: {', '.join(given)}."
        )
    return {name: _list_stores(name, given[name]) for name in dict.fromkeys(wanted)}


def _list_stores(name: str, roots: Sequence[str]) -> Encoder:
    """One listing a store: names for matching, sizes for the order of work."""
    stores = [FeatureStore.open(root) for root in roots]
    made_by = {fingerprint(_made_by(store)): store.root for store in stores}
    if len(made_by) > 1:
        raise ConfigError(
            f"--features {name}: expected stores of one encoder, got others in "
            f"{' and '.join(made_by.values())}. Give each encoder a label of its own."
        )
    sizes: dict[str, int] = {}
    for store in stores:
        suffix = store.record.suffix
        found = {i.rel.removesuffix(suffix): i.size_bytes for i in _files(store)}
        for slide in store.done_ids():
            if slide in sizes:
                raise ConfigError(
                    f"--features {name}: slide {slide} is in two of its stores, one of them "
                    f"{store.root}. Leave one out."
                )
            sizes[slide] = found.get(slide, 0)
    prints = tuple(sorted(store.fingerprint for store in stores))
    return Encoder(name=name, roots=tuple(roots), sizes=sizes, stores=prints)


def _files(store: FeatureStore) -> list[objects.FileInfo]:
    return list(objects.list_files(store.root, suffix=store.record.suffix))


def _made_by(store: FeatureStore) -> Any:
    """What must agree: the encoder where the store names one, else all of its configuration."""
    return store.record.config.get("encoder", store.record.config)
