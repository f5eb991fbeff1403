"""What stage 2 is watched by: drift, effective rank, the anchor's distance; and named failures.

    collapse      features of different patches become the same, or lose most of their directions
    forgetting    features have left those of the initial encoder
    no learning   the projection gets no closer to the targets
    explosion     the gradient's norm is far above what it was

Measured on a fixed probe of patches, in evaluation mode. `cosine.a`, `cosine.b`, `loss.*` and
`grad_norm` come from every step (`stage2_step`).
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from mstar.models.ema import Ema
from mstar.models.student import Student
from mstar.training.engines import autocast

COLLAPSE_SHARE = 0.5  # of the initial encoder's effective rank or spread
FORGETTING_DRIFT = 0.5  # mean 1 − cosine to the initial features
LEARNING_STEPS = 500  # after which loss A must have fallen
LEARNING_SHARE = 0.99  # to this share of its first values
EXPLOSION_FACTOR = 20.0
EXPLOSION_HISTORY = 200
NEIGHBOURS = 10


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Probe:
    """Fixed patches and the features that the initial encoder gave them."""

    images: UInt8[Tensor, "patch side side 3"]
    initial: Float32[np.ndarray, "patch dim"]

    @classmethod
    def take(
        cls,
        student: Student,
        images: UInt8[Tensor, "patch side side 3"],
        *,
        micro_batch: int,
        precision: str,
    ) -> "Probe":
        """A probe from patches, while the student still is the initial encoder."""
        initial = encode(student, images, micro_batch=micro_batch, precision=precision)
        return cls(images=images, initial=initial)

    def measure(
        self, student: Student, ema: Ema, *, micro_batch: int, precision: str
    ) -> dict[str, float]:
        """The probe's numbers; their names begin with `watch.`."""
        now = encode(student, self.images, micro_batch=micro_batch, precision=precision)
        first = self.initial
        return {
            "watch.drift": drift(now, first),
            "watch.neighbours_kept": neighbours_kept(now, first),
            "watch.effective_rank": effective_rank(now),
            "watch.effective_rank_share": effective_rank(now) / effective_rank(first),
            "watch.spread": spread(now),
            "watch.spread_share": spread(now) / max(spread(first), 1e-12),
            "watch.ema_distance": ema.distance(student.encoder),
        }


@torch.no_grad()
def encode(
    student: Student,
    images: UInt8[Tensor, "patch side side 3"],
    *,
    micro_batch: int,
    precision: str,
) -> Float32[np.ndarray, "patch dim"]:
    """Features of stored patches in evaluation mode; the student's mode is left as it was."""
    was_training = student.training
    student.eval()
    rows = []
    for start in range(0, len(images), micro_batch):
        prepared = student.prepare(images[start : start + micro_batch])
        with autocast(student.device, precision):
            rows.append(student(prepared).features.float().cpu())
    student.train(was_training)
    return torch.cat(rows).numpy()


def drift(
    features: Float[np.ndarray, "patch dim"], initial: Float[np.ndarray, "patch dim"]
) -> float:
    """Mean 1 − cosine between a patch's features now and at first."""
    return float(1 - (_unit(features) * _unit(initial)).sum(1).mean())


def effective_rank(features: Float[np.ndarray, "patch dim"]) -> float:
    """How many directions the features use: exp of the entropy of their singular values.

    Of unit vectors around their mean, so that neither scale nor a common offset counts. Between 1
    and the smaller of patches − 1 and dimensions; 1 when there is no difference at all.
    """
    unit = _unit(features)
    values = np.linalg.svd(unit - unit.mean(0), compute_uv=False)
    if values.sum() <= 1e-9:
        return 1.0
    share = values / values.sum()
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def spread(features: Float[np.ndarray, "patch dim"]) -> float:
    """Mean squared distance of unit vectors from their mean: 0 when all are the same, at most 1."""
    unit = _unit(features)
    return float(((unit - unit.mean(0)) ** 2).sum(1).mean())


def nearest(
    features: Float[np.ndarray, "patch dim"], count: int = NEIGHBOURS
) -> Int64[np.ndarray, "patch neighbour"]:
    """The most similar other patches of each, the most similar first."""
    unit = _unit(features)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    closest = np.argsort(-cosines, axis=1, kind="stable")[:, : min(count, len(unit) - 1)]
    return np.asarray(closest, np.int64)


def neighbours_kept(
    features: Float[np.ndarray, "patch dim"],
    initial: Float[np.ndarray, "patch dim"],
    count: int = NEIGHBOURS,
) -> float:
    """Share of each patch's nearest patches that were among its nearest at first."""
    now, then = nearest(features, count), nearest(initial, count)
    shared = [len(np.intersect1d(a, b)) for a, b in zip(now, then, strict=True)]
    return float(np.mean(shared) / now.shape[1])


def _unit(features: Float[np.ndarray, "patch dim"]) -> Float[np.ndarray, "patch dim"]:
    wide = features.astype(np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12))


@dataclass(slots=True, kw_only=True)
class Stage2Watch:
    """Looks at the numbers of steps and probes; says each thing once until it has passed."""

    _said: set[str] = field(default_factory=set)
    _norms: deque[float] = field(default_factory=lambda: deque(maxlen=EXPLOSION_HISTORY))
    _first_losses: list[float] = field(default_factory=list)
    _recent_losses: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    _active: dict[str, str] = field(default_factory=dict)

    def look(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """New findings at a step, as sentences for the log."""
        for name, seen in (
            ("explosion", self._explosion(metrics)),
            ("no learning", self._no_learning(step, metrics)),
            ("collapse", _collapse(metrics)),
            ("forgetting", _forgetting(metrics)),
        ):
            if seen is not None:
                self._active[name] = seen
        found = {name: text for name, text in self._active.items() if text}
        new = [f"step {step}: {text}" for name, text in found.items() if name not in self._said]
        self._said = set(found)
        return new

    def _explosion(self, metrics: Mapping[str, float]) -> str | None:
        norm = metrics.get("grad_norm")
        if norm is None:
            return None
        usual = median(self._norms) if len(self._norms) == EXPLOSION_HISTORY else 0.0
        self._norms.append(norm)
        if not usual or norm < EXPLOSION_FACTOR * usual:
            return ""
        return (
            f"explosion: the gradient's norm is {norm:.3g}, usually {usual:.3g}. Look at this "
            "step's patches; lower the learning rate if it goes on."
        )

    def _no_learning(self, step: int, metrics: Mapping[str, float]) -> str | None:
        loss = metrics.get("loss.a")
        if loss is None:
            return None
        if len(self._first_losses) < 20:
            self._first_losses.append(loss)
        self._recent_losses.append(loss)
        first, now = float(np.mean(self._first_losses)), float(np.mean(self._recent_losses))
        if step < LEARNING_STEPS or now < LEARNING_SHARE * first:
            return ""
        return (
            f"no learning: loss A is {now:.4f}, at first {first:.4f}. The targets may not belong "
            "to these patches (`mstar shards check`), or the projection's rate is too low."
        )


def _collapse(metrics: Mapping[str, float]) -> str | None:
    rank, apart = metrics.get("watch.effective_rank_share"), metrics.get("watch.spread_share")
    if rank is None or apart is None:
        return None
    if min(rank, apart) >= COLLAPSE_SHARE:
        return ""
    return (
        f"collapse: of the initial encoder's features {rank:.0%} of the effective rank and "
        f"{apart:.0%} of the spread are left (expected {COLLAPSE_SHARE:.0%} or more). Raise λ, or "
        "lower the learning rate."
    )


def _forgetting(metrics: Mapping[str, float]) -> str | None:
    moved = metrics.get("watch.drift")
    if moved is None:
        return None
    if moved <= FORGETTING_DRIFT:
        return ""
    return (
        f"forgetting: features are {moved:.2f} (1 − cosine) from the initial encoder's, expected "
        f"at most {FORGETTING_DRIFT}. Raise λ or the EMA momentum, or lower the learning rate."
    )
