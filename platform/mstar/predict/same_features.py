"""New slides must be seen as the training slides were: the encoder, its weights, the grid.

A model remembers the configurations of its feature stores. What may differ from them is how a
slide without resolution is treated and which grids were brought, never what a patch looks like or
who encodes it.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from mstar.api import Head
from mstar.embed.config import EmbedConfig
from mstar.errors import FeatureError, WeightsError
from mstar.predict.config import PredictConfig
from mstar.slides.grid import GridConfig
from mstar.slides.tissue import TissueConfig

MAY_DIFFER = ("grids", "licence", "slides.slide_mpp", "slides.missing_mpp",
              "slides.annotations", "slides.annotation_origin")  # fmt: skip


def recorded(head: Head) -> Mapping[str, Any]:
    """The configuration of the features that a head was trained on.

    Raises:
        WeightsError: the run does not say, or its stores differ.
    """
    return recorded_in(head.models[0].facts.get("made_by") or (), of=head.models[0].uri)


def recorded_in(made_by: Sequence[Mapping[str, Any]], *, of: str) -> Mapping[str, Any]:
    """The one configuration of a model's features.

    Raises:
        WeightsError: there is none.
        FeatureError: its stores differ.
    """
    if not made_by:
        raise WeightsError(
            f"{of}: expected a record of the encoder and grid of its features, got none. It was "
            "trained by an older mstar, or on features made elsewhere: train it again."
        )
    first = made_by[0]
    for other in made_by[1:]:
        check_same(other, first, of=f"{of}: a second store of its features")
    return first


def check_same(found: Mapping[str, Any], expected: Mapping[str, Any], *, of: str) -> None:
    """Refuse features of another encoder, grid or precision.

    Raises:
        FeatureError: names every difference.
    """
    ours, theirs = _flat(found), _flat(expected)
    differing = [
        f"{name}: expected {theirs.get(name)!r}, got {ours.get(name)!r}"
        for name in sorted(set(ours) | set(theirs))
        if ours.get(name) != theirs.get(name) and name not in MAY_DIFFER
    ]
    if differing:
        raise FeatureError(
            f"{of}: other features than the model was trained on ({'; '.join(differing)}). Embed "
            "the slides with the model's encoder, weights and grid."
        )


def embed_config(config: PredictConfig, expected: Mapping[str, Any], out: str) -> EmbedConfig:
    """How new slides are embedded: as the record says.

    Raises:
        WeightsError: the features were made elsewhere, so that they cannot be made here.
    """
    if "slides" not in expected or "encoder" not in expected:
        raise WeightsError(
            f"{config.model}: its features were made elsewhere ({expected}), so slides cannot be "
            "embedded alike. Give their features by --features."
        )
    seen = copy.deepcopy(dict(expected["slides"]))
    assert config.slides is not None
    return EmbedConfig(
        slides=config.slides,
        out=out,
        encoder=config.encoder or expected["encoder"],
        weights=config.weights,
        slide_mpp=config.slide_mpp,
        missing_mpp=config.missing_mpp,
        dtype=expected["dtype"],
        precision=expected["precision"],
        bad_patches=expected["bad_patches"],
        device=config.device,
        batch_size=config.batch_size,
        grid=GridConfig(**seen["grid"]),
        tissue=TissueConfig(**seen["tissue"]),
        run=config.run,
    )


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{name}.")
        else:
            flat[f"{before}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat
