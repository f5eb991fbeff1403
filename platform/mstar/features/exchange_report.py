"""What becomes of each slide of `mstar export` and `mstar import`, and which layout it is with.

Each slide stands alone: one that cannot be exchanged is reported with its reason and the rest goes
on. Nothing is ever overwritten. A file that is there already is left if it is equal, and is a
failure of that slide if it is not, so that two encoders or grids are never mixed by accident.
"""

import traceback
from dataclasses import dataclass, field

from mstar.errors import ConfigError, MstarError
from mstar.features.layouts import LAYOUTS
from mstar.features.layouts.contract import (
    Layout,
)


@dataclass(slots=True, kw_only=True)
class ExchangeReport:
    """What became of each slide."""

    layout: str
    out: str
    written: int = 0
    already: int = 0
    empty: list[str] = field(default_factory=list)  # no tissue, and no file for it in the layout
    failures: dict[str, str] = field(default_factory=dict)  # slide id -> reason
    tracebacks: dict[str, str] = field(default_factory=dict)
    warnings: dict[str, int] = field(default_factory=dict)  # text -> number of slides

    def fail(self, slide_id: str, error: Exception) -> None:
        """Notes a slide that could not be exchanged."""
        known = isinstance(error, MstarError)
        self.failures[slide_id] = str(error) if known else f"{type(error).__name__}: {error}"
        self.tracebacks[slide_id] = "".join(traceback.format_exception(error))


def layout_named(name: str) -> Layout:
    """The table row of a layout."""
    if name not in LAYOUTS:
        raise ConfigError(f"--layout: expected one of {sorted(LAYOUTS)}, got {name!r}.")
    return LAYOUTS[name]
