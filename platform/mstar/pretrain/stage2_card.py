"""The model card of an encoder trained by stage 2, as Markdown."""

import json
from collections.abc import Mapping
from typing import Any

from mstar.models.encoder_table import find_encoder, timm_call

NO_DERIVATIVES = "ND"


def model_card(record: Mapping[str, Any], hashes: Mapping[str, str]) -> str:
    """The card.

    Args:
        record: what the exported files say of themselves.
        hashes: sha256 of each weights file by its name.
    """
    sections = (
        _head(record),
        _loading(record),
        _pixels(record),
        _training(record),
        _metrics(record),
        _provenance(record, hashes),
        _licence(record),
        _settings(record),
    )
    return "\n".join(line for section in sections for line in (*section, "")).rstrip() + "\n"


def _head(record: Mapping[str, Any]) -> list[str]:
    lines = [
        f"# Patch encoder after stage 2 ({record['encoder']})",
        "",
        f"A patch encoder of {record['num_parameters']:,} parameters: one vector of "
        f"{record['dim']} numbers for a patch. It started as `{record['initial_uri']}` and was "
        "taught what a slide aggregator learnt from slides, reports and gene expression "
        f"(self-taught training; {record['step']:,} optimiser steps).",
        "",
        "For research. Not a medical device: no diagnosis may rest on it.",
    ]
    if record["generated"]:
        lines += ["", "**Trained on generated data**: fit for tests and demos only."]
    if record["branch"] == "ema":
        lines += ["", "The weights are the moving average (EMA) of the trained ones."]
    return lines


def _loading(record: Mapping[str, Any]) -> list[str]:
    name = record["encoder"]
    call = timm_call(find_encoder(name))
    lines = ["## Loading", ""]
    if call:
        lines += [
            "```python",
            "import timm, torch",
            "",
            f"model = {call}",
            'state = torch.load("encoder.pth", map_location="cpu", weights_only=True)',
            "model.load_state_dict(state, strict=True)",
            "```",
            "",
        ]
    kind = "mstar" if name == "uni" else name  # the same architecture under the trained one's name
    return [
        *lines,
        "`encoder.safetensors` holds the same tensors. With this platform:",
        "",
        f"    mstar embed --encoder {kind} --weights encoder.safetensors --slides … --out …",
        "",
        "`projection.safetensors` (`proj.weight`, `proj.bias`) leads from a feature vector to the "
        "space of the aggregator and the report encoder, for zero-shot and retrieval.",
    ]


def _pixels(record: Mapping[str, Any]) -> list[str]:
    spec = find_encoder(record["encoder"])
    return [
        "## Input",
        "",
        f"- patches of {spec.patch_px} px at {spec.mpp} microns per pixel, RGB",
        f"- transform: {record['transform']}",
    ]


def _training(record: Mapping[str, Any]) -> list[str]:
    rows = [f"| {name} | {value:,} |" for name, value in record["counts"].items()]
    return ["## Training data", "", "| what | count |", "|---|---|", *rows]


def _metrics(record: Mapping[str, Any]) -> list[str]:
    rows = [f"| {name} | {value:.6g} |" for name, value in sorted(record["metrics"].items())]
    return ["## Metrics", "", "| metric | at the end |", "|---|---|", *rows]


def _provenance(record: Mapping[str, Any], hashes: Mapping[str, str]) -> list[str]:
    facts = {
        "initial weights": f"`{record['initial_uri']}`, sha256 `{record['initial_sha256']}`",
        **{name.replace("_", " "): f"`{value}`" for name, value in record["provenance"].items()},
        "mstar": record["mstar"],
        **{name: f"sha256 `{value}`" for name, value in hashes.items()},
    }
    return ["## Provenance", "", *(f"- {name}: {value}" for name, value in facts.items())]


def _licence(record: Mapping[str, Any]) -> list[str]:
    source = f" ({record['licence_url']})" if record["licence_url"] else ""
    lines = [
        "## Licence",
        "",
        f"The initial weights are under **{record['licence']}**{source}. These weights are made "
        "from them: their terms go on to this encoder, and to the features and models made with "
        "it. The terms of the training data apply besides.",
    ]
    if NO_DERIVATIVES in record["licence"].split("-"):
        lines += ["", "Those terms do not allow sharing derivatives: do not publish these weights."]
    return lines


def _settings(record: Mapping[str, Any]) -> list[str]:
    text = json.dumps(record["config"], indent=1, sort_keys=True, ensure_ascii=False)
    return ["## Settings", "", "```json", *text.splitlines(), "```"]
