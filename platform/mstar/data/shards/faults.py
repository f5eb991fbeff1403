"""Rows that cannot be trained: counted, named, borne up to a bound."""

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from mstar.errors import TrainingError

FaultKind = Literal["shard", "jpeg", "target"]

NAMES_KEPT = 100
_WHAT = {
    "shard": "in shards that cannot be read",
    "jpeg": "whose JPEG is broken",
    "target": "whose target is not finite",
}
_log = logging.getLogger(__name__)


class BrokenShardError(Exception):
    """A shard is not what the index says; its message is the fault of the pieces in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFault:
    """What is wrong with one row, or with the rows of one piece."""

    kind: FaultKind
    name: str
    reason: str
    num_rows: int = 1

    def __str__(self) -> str:
        """One line."""
        return f"{self.name}: {self.reason} ({self.num_rows} row{'s' * (self.num_rows > 1)})"


class FaultLedger:
    """The faults a stream has met: how many rows of each kind, and the names of the first."""

    def __init__(self, folder: str, *, num_rows: int, max_share: float) -> None:
        """Start without faults.

        Args:
            folder: that holds the shards, for the message.
            num_rows: rows that this worker reads in an epoch.
            max_share: the share of them that may be left out.
        """
        self._folder, self._max_share = folder, max_share
        self._allowed = int(num_rows * max_share)
        self.num_rows: Counter[FaultKind] = Counter()
        self.first: list[RowFault] = []

    @property
    def total_rows(self) -> int:
        """Rows of all kinds left out."""
        return self.num_rows.total()

    def add(self, fault: RowFault) -> None:
        """Count and name a fault.

        Raises:
            TrainingError: there are more now than the run bears.
        """
        self.num_rows[fault.kind] += fault.num_rows
        if len(self.first) < NAMES_KEPT:
            self.first.append(fault)
            _log.warning("%s, left out: %s", self._folder, fault)
        if self.total_rows > self._allowed:
            raise TrainingError(self._message())

    def _message(self) -> str:
        parts = [f"{count} {_WHAT[kind]}" for kind, count in sorted(self.num_rows.items())]
        names = "; ".join(map(str, self.first[:3]))
        return (
            f"{self._folder}: expected at most {self._allowed} rows that cannot be trained "
            f"(max_bad_share {self._max_share:g} of this worker's share of an epoch), got "
            f"{self.total_rows}: {', '.join(parts)}. The first: {names}. Run `mstar shards check` "
            "and `mstar targets` again, or allow more (max_bad_share)."
        )
