"""Configs are frozen dataclasses: to JSON, to a fingerprint, and compared field by field."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any


def to_dict(config: Any) -> Any:
    """The config as plain JSON values, nested dataclasses included."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): to_dict(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_dict(value) for value in config]
    if config is None or isinstance(config, str | int | float | bool):
        return config
    return str(config)


def to_json(config: Any) -> str:
    """The config as JSON with sorted keys, equal for equal configs."""
    return json.dumps(to_dict(config), sort_keys=True, indent=1, ensure_ascii=False)


def fingerprint(config: Any) -> str:
    """The first 16 hex digits of the sha256 of `to_json`."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()[:16]


def differences(expected: Any, found: Any, prefix: str = "") -> list[str]:
    """One line `field: expected …, found …` per leaf in which two configs differ."""
    left, right = to_dict(expected), to_dict(found)
    if not (isinstance(left, dict) and isinstance(right, dict)):
        return [] if left == right else [f"{prefix}: expected {left!r}, found {right!r}"]
    lines = []
    for key in sorted(left.keys() | right.keys()):
        name = f"{prefix}.{key}" if prefix else key
        lines += differences(left.get(key), right.get(key), name)
    return lines
