"""Validation of stage 1 on held-out cases: retrieval in all directions, geometry, zero-shot types.

Every rank embeds its share of the cases; all see all vectors and come to the same numbers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int64

from mstar.data.cancer_types import CANCER_TYPES
from mstar.data.report_tokens import ReportTokenizer
from mstar.losses.cases import MODALITIES
from mstar.losses.recall import (
    Retrieval,
    alignment,
    normalised,
    retrieval,
    similarity,
    uniformity,
)
from mstar.models.multimodal import MultimodalModel
from mstar.pretrain.cached_step import on_device
from mstar.pretrain.stage1_batches import CaseInputs
from mstar.pretrain.stage1_cases import TrainCase
from mstar.training.engines import autocast, world_size

PROMPTS = ("{name}", "final diagnosis: {name}", "histology consistent with {name}")
FEWEST_CASES = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CaseVectors:
    """The vectors of held-out cases; rows of a modality that a case lacks are zeros."""

    case_ids: tuple[str, ...]
    cancer: Int64[np.ndarray, " case"]
    vectors: Mapping[str, Float[np.ndarray, "case dim"]]
    has: Mapping[str, np.ndarray]

    def both(self, first: str, second: str) -> Int64[np.ndarray, " case"]:
        """The cases that have two modalities."""
        return np.flatnonzero(self.has[first] & self.has[second])


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What one validation found.

    directions: `wsi_to_text` and so on; only those with enough cases.
    """

    metrics: Mapping[str, float]
    directions: Mapping[str, Retrieval] = field(default_factory=dict)
    vectors: CaseVectors | None = None


@torch.no_grad()
def embed_cases(
    model: MultimodalModel,
    inputs: CaseInputs,
    cases: Sequence[TrainCase],
    *,
    chunk_cases: int,
    precision: str,
    rank: int = 0,
) -> CaseVectors:
    """The vectors of cases: first windows, epoch 0's bags, no dropout. Collective."""
    device = model.logit_scale.log_scale.device
    mine = cases[rank :: world_size()]
    rows: dict[str, list[np.ndarray]] = {name: [] for name in (*MODALITIES, *HAS)}
    model.eval()
    for start in range(0, len(mine), chunk_cases):
        chunk = inputs.chunk(mine[start : start + chunk_cases], epoch=0, training=False)
        with autocast(device, precision):
            output = model(on_device(chunk.batch, device))
        for name in rows:
            rows[name].append(getattr(output, name).float().cpu().numpy())
    return _gathered({name: np.concatenate(r) if r else None for name, r in rows.items()}, cases)


HAS = tuple(f"has_{name}" for name in MODALITIES)


def _gathered(mine: Mapping[str, np.ndarray | None], cases: Sequence[TrainCase]) -> CaseVectors:
    """The rows of all ranks in the order of the cases."""
    ranks: list[Mapping[str, np.ndarray | None]] = [mine]
    if world_size() > 1:
        ranks = [mine] * world_size()
        dist.all_gather_object(ranks, mine)
    merged: dict[str, np.ndarray] = {}
    for name in mine:
        parts = [part[name] for part in ranks]
        width = next(p.shape[1:] for p in parts if p is not None)
        merged[name] = np.zeros((len(cases), *width), np.float32)
        for rank, part in enumerate(parts):
            if part is not None:
                merged[name][rank :: len(ranks)] = part
    return CaseVectors(
        case_ids=tuple(one.case.case_id for one in cases),
        cancer=np.array([one.cancer for one in cases], np.int64),
        vectors={name: merged[name] for name in MODALITIES},
        has={name: merged[f"has_{name}"] > 0 for name in MODALITIES},
    )


def measure(
    vectors: CaseVectors,
    *,
    duplicates: Int64[np.ndarray, " case"],
    class_vectors: Float[np.ndarray, "cancer dim"] | None = None,
    seed: int = 0,
) -> Validation:
    """All metrics of some cases' vectors.

    duplicates: cases with the same number have near-duplicate reports.
    class_vectors: one text vector per cancer type, for zero-shot accuracy.
    """
    metrics: dict[str, float] = {}
    directions: dict[str, Retrieval] = {}
    for first, second in permutations(MODALITIES, 2):
        rows = vectors.both(first, second)
        if len(rows) < FEWEST_CASES:
            continue
        a, b = vectors.vectors[first][rows], vectors.vectors[second][rows]
        group = duplicates[rows] if "text" in (first, second) else rows
        name = f"{first}_to_{second}"
        directions[name] = retrieval(
            similarity(a, b), cancer=vectors.cancer[rows], group=group, seed=seed
        )
        metrics |= dict(_direction_metrics(name, directions[name]))
        metrics[f"alignment.{'-'.join(sorted((first, second)))}"] = alignment(a, b)
    for name in MODALITIES:
        if vectors.has[name].sum() >= FEWEST_CASES:
            metrics[f"uniformity.{name}"] = uniformity(vectors.vectors[name][vectors.has[name]])
    if class_vectors is not None and vectors.has["wsi"].any():
        metrics |= zero_shot(vectors, class_vectors)
    tens = [r.value for d in directions.values() for r in d.overall if r.k == 10]
    if tens:
        metrics["mean_recall_at_10"] = float(np.mean(tens))
    return Validation(
        metrics={f"val.{name}": value for name, value in metrics.items()},
        directions=directions,
        vectors=vectors,
    )


def _direction_metrics(name: str, found: Retrieval) -> Iterator[tuple[str, float]]:
    for prefix, recalls in (("", found.overall), ("within_", found.within)):
        for recall in recalls:
            yield f"{prefix}recall_at_{recall.k}.{name}", recall.value
            yield f"{prefix}recall_low_at_{recall.k}.{name}", recall.low
            yield f"{prefix}recall_high_at_{recall.k}.{name}", recall.high
            yield f"{prefix}chance_at_{recall.k}.{name}", recall.chance
    for recall in found.overall:
        yield f"type_ceiling_at_{recall.k}.{name}", recall.ceiling
    yield f"median_rank.{name}", found.median_rank


def zero_shot(
    vectors: CaseVectors, class_vectors: Float[np.ndarray, "cancer dim"]
) -> dict[str, float]:
    """Accuracy of naming a slide's cancer type by the nearest type's text, among those present."""
    rows = np.flatnonzero(vectors.has["wsi"])
    present = np.unique(vectors.cancer[rows])
    scores = similarity(vectors.vectors["wsi"][rows], class_vectors[present])
    right = present[scores.argmax(1)] == vectors.cancer[rows]
    recalls = [right[vectors.cancer[rows] == cancer].mean() for cancer in present]
    return {
        "zero_shot_accuracy": float(right.mean()),
        "zero_shot_balanced_accuracy": float(np.mean(recalls)),
        "zero_shot_chance": 1 / len(present),
    }


@torch.no_grad()
def class_vectors(
    model: MultimodalModel, tokenizer: ReportTokenizer, cancers: Sequence[str], precision: str
) -> Float[np.ndarray, "cancer dim"]:
    """One unit text vector per cancer type: the mean over the prompts' unit vectors."""
    assert model.text_encoder is not None
    device = model.logit_scale.log_scale.device
    texts = [
        prompt.format(name=CANCER_TYPES.get(cancer, cancer))
        for cancer in cancers
        for prompt in PROMPTS
    ]
    batch = tokenizer.encode_batch(texts, trim=True)
    model.eval()
    with autocast(device, precision):
        found = model.text_encoder(
            torch.from_numpy(batch.input_ids).to(device),
            torch.from_numpy(batch.attention_mask).to(device),
        )
    unit = normalised(found.float().cpu().numpy())
    return normalised(unit.reshape(len(cancers), len(PROMPTS), -1).mean(1))
