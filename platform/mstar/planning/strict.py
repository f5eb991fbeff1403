"""Small JSON files that people write by hand, read strictly into frozen dataclasses.

Whatever is wrong names the file, the field, what was expected and found, and the way out.
"""

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_type_hints

from mstar.errors import ConfigError
from mstar.storage import objects

Found = TypeVar("Found")

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def read_json(uri: str, *, way_out: str) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        ConfigError: there is no such file, it is no JSON, or no object.
    """
    try:
        found = json.loads(objects.read_bytes(uri), parse_constant=_no_constant)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ConfigError(f"{uri}: expected a JSON file, got no such file. {way_out}") from error
    except ValueError as error:
        raise ConfigError(f"{uri}: expected JSON, got something else: {error}. {way_out}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{uri}: expected an object {{…}}, got a list or a value. {way_out}")
    return found


def parse(kind: type[Found], found: Mapping[str, Any], *, where: str) -> Found:
    """A dataclass from plain values; nested ones from nested objects.

    Raises:
        ConfigError: a field is unknown, missing, of another type or out of its range.
    """
    parts = {part.name: part for part in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in found:
        if name not in parts:
            close = difflib.get_close_matches(name, parts, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"{where}: field {name!r}: expected one of {', '.join(parts)}; got an unknown one. "
                f"Did you mean {close!r}?"
            )
    needed = [n for n, p in parts.items() if p.default is p.default_factory is dataclasses.MISSING]
    if missing := [name for name in needed if name not in found]:
        raise ConfigError(f"{where}: field {missing[0]!r}: expected a value, got none. Add it.")
    hints = get_type_hints(kind)
    values = {
        name: _value(hints[name], value, f"{where}: field {name!r}")
        for name, value in found.items()
    }
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _value(hint: Any, value: Any, where: str) -> Any:
    """A value of the hinted type; whole numbers count as numbers, true and false do not."""
    choices = get_args(hint)
    if type(None) in choices and value is None:
        return None
    kinds = [part for part in choices or (hint,) if part is not type(None)]
    kind = kinds[0]
    if dataclasses.is_dataclass(kind):
        if isinstance(value, dict):
            return parse(kind, value, where=where)  # type: ignore[arg-type]
        raise ConfigError(f"{where}: expected an object {{…}}, got {value!r}. Correct the file.")
    wanted = {float: "a finite number", int: "a whole number", str: "text"}[kind]
    right = isinstance(value, (int, float) if kind is float else kind)
    if not right or isinstance(value, bool) or (kind is float and not math.isfinite(value)):
        raise ConfigError(f"{where}: expected {wanted}, got {value!r}. Correct the file.")
    return kind(value)


def check_range(config: Any, least: float, *names: str, most: float = math.inf) -> None:
    """Raises ConfigError for a field that is below `least` or above `most`."""
    for name in names:
        value = getattr(config, name)
        if not least <= value <= most:
            wanted = f"at least {least:g}" if most == math.inf else f"{least:g} to {most:g}"
            raise ConfigError(f"{name}: expected {wanted}, got {value:g}. Correct it.")


def check_positive(config: Any, *names: str) -> None:
    """Raises ConfigError for a field that is not above zero."""
    for name in names:
        value = getattr(config, name)
        if not value > 0 or not math.isfinite(value):
            raise ConfigError(
                f"{name}: expected a finite number above 0, got {value!r}. Correct it."
            )


def check_date(name: str, text: str) -> None:
    """Raises ConfigError unless the text is a day, as 2026-01-31."""
    if not _DATE.fullmatch(text):
        raise ConfigError(f"{name}: expected a date like 2026-01-31, got {text!r}. Correct it.")


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no number")
