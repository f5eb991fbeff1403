"""Inputs that turned out unusable while they were read: named once, counted, refused by policy."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from mstar.config import to_dict
from mstar.errors import FeatureError, TrainingError
from mstar.pretrain.stage1_cases import BadInput, Stage1Cases
from mstar.pretrain.stage1_config import Stage1Config
from mstar.training.engines import rank, world_size
from mstar.training.exit_codes import allowed_failures

log = logging.getLogger("mstar.stage1")

_FILE = "found_bad-{rank}.json"  # in a checkpoint, of every rank


@dataclass(slots=True, kw_only=True)
class FoundBad:
    """What this rank has met, and after `merge` what all have."""

    config: Stage1Config
    _found: dict[tuple[str, str], BadInput] = field(default_factory=dict)

    def __iter__(self) -> Iterator[BadInput]:
        """The inputs in the order in which they were met."""
        return iter(list(self._found.values()))

    def note(self, one: BadInput) -> None:
        """Name an unusable input the first time it is met."""
        if (one.case_id, one.modality) not in self._found:
            self._found[one.case_id, one.modality] = one
            log.warning("left out: case %s, %s: %s", one.case_id, one.modality, one.reason)

    def refuse(self, cases: Stage1Cases) -> None:
        """Raises when there are bad inputs that are not allowed, or more than are."""
        first = next(iter(self), None)
        if first is None:
            return
        if self.config.bad_cases == "refuse":
            raise FeatureError(first.reason)
        num_cases = len(cases.train) + len(cases.val)
        num_bad = len({one.case_id for one in (*self, *cases.bad)})
        if num_bad > allowed_failures(self.config.max_bad_cases, num_cases):
            raise TrainingError(
                f"{num_bad} of {num_cases} cases have inputs that cannot be used, "
                f"{self.config.max_bad_cases} are allowed; one of them: {first.reason} "
                "Correct them, or raise --max-bad-cases."
            )

    def merge(self) -> None:
        """What any rank has met becomes known to all. Collective."""
        if world_size() == 1:
            return
        ranks: list[Any] = [None] * world_size()
        dist.all_gather_object(ranks, self._found)
        for found in ranks:
            self._found |= found

    def write(self, folder: Path) -> None:
        """Keep it in a checkpoint."""
        path = folder / _FILE.format(rank=rank())
        path.write_text(json.dumps([to_dict(one) for one in self]))

    def read(self, folder: Path | None) -> None:
        """Take up what all ranks had met by a checkpoint; they named it then."""
        for path in sorted(folder.glob(_FILE.format(rank="*"))) if folder is not None else []:
            for one in json.loads(path.read_text()):
                self._found[one["case_id"], one["modality"]] = BadInput(**one)
