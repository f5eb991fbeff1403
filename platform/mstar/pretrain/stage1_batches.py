"""The inputs of a step: bags, tokens and expression ids of a rank's cases, chunk by chunk.

Everything drawn depends on (seed, epoch, case) alone, so that any number of workers, and a resumed
run, see the same bags and windows. A thread prepares the next step while one is computed.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64

from mstar.data.bags import BagReader
from mstar.data.report_tokens import ReportTokenizer, case_seed
from mstar.data.rna.binning import BinningConfig, bin_expression
from mstar.data.rna.store import ExpressionStore
from mstar.errors import FeatureError
from mstar.models.multimodal import MultimodalBatch
from mstar.pretrain.cached_step import Chunk
from mstar.pretrain.stage1_cases import BadInput, TrainCase


@dataclass(slots=True, kw_only=True)
class CaseInputs:
    """Turns cases into chunks.

    token_ids: report key → all its tokens. on_bad: told of inputs that turned out unusable; the
    modality is left out of the batch.
    """

    bags: BagReader | None
    token_ids: dict[str, Int64[np.ndarray, " token"]]
    tokenizer: ReportTokenizer | None
    expression: ExpressionStore | None
    bins: BinningConfig
    seed: int
    on_bad: Callable[[BadInput], None]
    token_dropout: float = 0.0

    def chunk(self, cases: Sequence[TrainCase], *, epoch: int, training: bool) -> Chunk:
        """The inputs of some cases; of none, an empty chunk."""
        parts: dict[str, Any] = {}
        for read in (self._slides, self._reports, self._expression):
            parts |= read(cases, epoch, training)
        return Chunk(
            batch=MultimodalBatch(num_cases=len(cases), **parts),
            case_ids=tuple(one.case.case_id for one in cases),
            cancer=torch.tensor([one.cancer for one in cases], dtype=torch.int64),
        )

    def _slides(self, cases: Sequence[TrainCase], epoch: int, training: bool) -> dict[str, Any]:
        found = {}
        for place, one in enumerate(cases):
            if "wsi" not in one.modalities:
                continue
            assert self.bags is not None
            try:
                found[place] = self.bags.read(
                    one.case.case_id, one.case.slides, epoch=epoch if training else 0
                )
            except FeatureError as error:
                self.on_bad(BadInput(case_id=one.case.case_id, modality="wsi", reason=str(error)))
        if not found:
            return {}
        return {
            "bags": torch.from_numpy(np.stack([bag.features for bag in found.values()])),
            "bag_mask": torch.from_numpy(np.stack([bag.mask for bag in found.values()])),
            "bag_cases": torch.tensor(list(found), dtype=torch.int64),
        }

    def _reports(self, cases: Sequence[TrainCase], epoch: int, training: bool) -> dict[str, Any]:
        places = [place for place, one in enumerate(cases) if "text" in one.modalities]
        if not places:
            return {}
        assert self.tokenizer is not None
        keys = [str(cases[place].case.report) for place in places]
        batch = self.tokenizer.collate(
            [self.token_ids[key] for key in keys],
            window="random" if training else "first",
            seeds=[case_seed(self.seed, epoch, key) for key in keys],
            trim=True,
        )
        mask = batch.attention_mask
        if training and self.token_dropout:
            mask = mask & np.stack([self._shown(key, epoch, mask.shape[1]) for key in keys])
        return {
            "tokens": torch.from_numpy(batch.input_ids),
            "token_mask": torch.from_numpy(mask),
            "token_cases": torch.tensor(places, dtype=torch.int64),
        }

    def _shown(self, key: str, epoch: int, width: int) -> Bool[np.ndarray, " token"]:
        """Which places of a report are shown in an epoch; [CLS] always."""
        rng = np.random.default_rng([*case_seed(self.seed, epoch, key), 1])  # 0 draws the window
        shown: Bool[np.ndarray, " token"] = rng.random(width) >= self.token_dropout
        shown[0] = True
        return shown

    def _expression(self, cases: Sequence[TrainCase], epoch: int, training: bool) -> dict[str, Any]:
        places = [place for place, one in enumerate(cases) if "gene" in one.modalities]
        if not places:
            return {}
        assert self.expression is not None
        values = self.expression.rows([str(cases[place].case.rna) for place in places])
        sound = np.isfinite(values).all(1) & (values >= 0).all(1) & (values > 0).any(1)
        for row in np.flatnonzero(~sound):
            one = cases[places[row]].case
            reason = f"RNA row {one.rna}: expected values from 0 on, not all 0 and none NaN"
            self.on_bad(BadInput(case_id=one.case_id, modality="gene", reason=reason))
        places, values = [places[row] for row in np.flatnonzero(sound)], values[sound]
        if not places:
            return {}
        return {
            "expression": torch.from_numpy(bin_expression(values, self.bins)),
            "expression_cases": torch.tensor(places, dtype=torch.int64),
        }


def chunks_of(
    inputs: CaseInputs,
    cases: Sequence[TrainCase],
    *,
    chunk_cases: int,
    num_chunks: int,
    epoch: int,
    training: bool = True,
) -> list[Chunk]:
    """A rank's cases in exactly `num_chunks` chunks; the last ones may be empty."""
    return [
        inputs.chunk(
            cases[place * chunk_cases : (place + 1) * chunk_cases], epoch=epoch, training=training
        )
        for place in range(num_chunks)
    ]


class Ahead:
    """Prepares the inputs of the next step in a thread."""

    def __init__(self, prepare: Callable[[int], list[Chunk]], num_steps: int) -> None:
        """`prepare(step)` gives a step's chunks; nothing is prepared beyond `num_steps`."""
        self._prepare, self._num_steps = prepare, num_steps
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="stage1-inputs")
        self._next: tuple[int, Any] | None = None

    def get(self, step: int) -> list[Chunk]:
        """The step's chunks; starts on the next step's."""
        if self._next is not None and self._next[0] == step:
            chunks: list[Chunk] = self._next[1].result()
        else:
            chunks = self._prepare(step)
        self._next = None
        if step + 1 < self._num_steps:
            self._next = step + 1, self._pool.submit(self._prepare, step + 1)
        return chunks

    def close(self) -> None:
        """Stop preparing."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "Ahead":
        """Nothing to start."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop preparing."""
        self.close()


def spread(cases: Sequence[TrainCase], indices: Int64[np.ndarray, " case"]) -> list[TrainCase]:
    """The cases at these indices."""
    return [cases[int(index)] for index in indices]
