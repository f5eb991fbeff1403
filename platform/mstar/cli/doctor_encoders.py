"""`mstar doctor --encoder X`: can its weights be had here, and if not, what is to be done."""

import os
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache

from mstar.cli.doctor_checks import Check, Place
from mstar.errors import ConfigError
from mstar.models.encoder_spec import EncoderSpec
from mstar.models.encoder_table import ENCODERS, find_encoder
from mstar.models.hub import PREFERRED

NAME = "encoder"


def check_encoder(place: Place) -> Check:
    """The weights of one encoder; without one, which encoders want terms accepted."""
    if not place.encoder:
        gated = ", ".join(name for name, spec in ENCODERS.items() if spec.gated)
        found = f"not asked for (--encoder X); weights on acceptance of terms: {gated}"
        return Check(name=NAME, status="ok", found=found)
    try:
        spec = find_encoder(place.encoder)
    except ConfigError as error:
        return Check(name=NAME, status="fail", found=str(error), way_out="correct --encoder")
    return _check_weights(spec)


def _check_weights(spec: EncoderSpec) -> Check:
    about = f"{spec.name}: {spec.dim} numbers a patch, {spec.pooling}, {spec.licence}"
    if spec.hub_id is None:
        found = f"{about}; weights {spec.default_weights or 'given with --weights'}"
        return Check(name=NAME, status="ok", found=found)
    if is_cached(spec.hub_id):
        return Check(name=NAME, status="ok", found=f"{about}; weights in the hub's local cache")
    terms = f"accept the terms at https://huggingface.co/{spec.hub_id} with your own account, then"
    elsewhere = (
        f"or fetch them elsewhere (`hf download {spec.hub_id}`) and give the folder: --weights"
    )
    if spec.gated and not has_token():
        return Check(
            name=NAME,
            status="fail",
            found=f"{about}; weights are given on acceptance of terms, and no HF_TOKEN is set",
            way_out=f"{terms} set HF_TOKEN in the environment of the job, {elsewhere}",
        )
    gate = "gated, HF_TOKEN is set" if spec.gated else "open"
    return Check(
        name=NAME,
        status="warn",
        found=f"{about}; weights not here yet ({gate})",
        way_out=f"the first run fetches them from the hub, {elsewhere}",
    )


def is_cached(hub_id: str) -> bool:
    """Whether the hub's local cache has the usual weights file of a model."""
    names = [*PREFERRED]
    return any(isinstance(try_to_load_from_cache(hub_id, name), str) for name in names)


def has_token() -> bool:
    """Whether the hub's library would find a token; its value is not looked at."""
    return bool(os.environ.get("HF_TOKEN")) or Path(constants.HF_TOKEN_PATH).is_file()
