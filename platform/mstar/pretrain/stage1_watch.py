"""Names for the ways in which contrastive training fails, said when they are seen.

    collapse          embeddings of different cases point the same way
    temperature clamp the logit scale sits at its bound: the model is sure and cannot get surer
    plateau           the contrastive loss stays at log N: nothing is told apart

Collapse is looked for in the training batches and in the held-out cases: dropout alone spreads the
former. While the learning rate rises nothing is said: encoders that start out constant may learn.
NaN is refused elsewhere, with the case's id (`cached_step`).
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

COLLAPSE_UNIFORMITY = -0.05  # of unit vectors; 0 when all are equal, about -3.9 when spread well
COLLAPSE_STEPS = 25
COLLAPSE_VALIDATIONS = 3
CLAMP_SHARE = 0.999
PLATEAU_STEPS = 50
PLATEAU_SHARE = 0.03  # within 3 % of log N


@dataclass(slots=True, kw_only=True)
class Stage1Watch:
    """Looks at the metrics of every step and validation; says a thing once until it has passed.

    max_scale: bound of the logit scale.
    """

    max_scale: float
    _seen: dict[str, deque[bool]] = field(default_factory=dict)
    _said: dict[bool, set[str]] = field(default_factory=lambda: {True: set(), False: set()})
    _rate: float = 0.0
    _rising: bool = False

    def look(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """New findings at a step, or at a validation, as sentences for the log."""
        trained = "loss" in metrics
        if trained:
            rate = metrics.get("lr", 0.0)
            self._rising, self._rate = rate > self._rate, rate
        if self._rising:
            return []
        if trained:
            found = {
                **self._collapse(metrics, "", "steps", COLLAPSE_STEPS),
                **self._clamp(metrics),
                **self._plateau(metrics),
            }
        else:
            found = self._collapse(metrics, "val.", "validations", COLLAPSE_VALIDATIONS)
        new = [text for name, text in found.items() if name not in self._said[trained]]
        self._said[trained] = set(found)
        return [f"step {step}: {text}" for text in new]

    def _collapse(
        self, metrics: Mapping[str, float], prefix: str, unit: str, num: int
    ) -> dict[str, str]:
        whose = "held-out " if prefix else ""
        return {
            name: (
                f"collapse: {whose}{name.rpartition('.')[2]} embeddings are nearly all the same "
                f"(uniformity {value:.3f}, expected below {COLLAPSE_UNIFORMITY}) for {num} {unit}. "
                "Lower the learning rate, or raise the batch."
            )
            for name, value in metrics.items()
            if name.startswith(f"{prefix}uniformity.")
            and self._lasts(name, value > COLLAPSE_UNIFORMITY, num)
        }

    def _clamp(self, metrics: Mapping[str, float]) -> dict[str, str]:
        scale = metrics.get("logit_scale", 0.0)
        if scale < CLAMP_SHARE * self.max_scale:
            return {}
        return {
            "clamp": (
                f"temperature at the clamp: the logit scale is {scale:.1f} of at most "
                f"{self.max_scale:.0f}. The training pairs are told apart too easily; look for a "
                "leak between modalities, or stop earlier."
            )
        }

    def _plateau(self, metrics: Mapping[str, float]) -> dict[str, str]:
        found = {}
        for name, value in metrics.items():
            count = metrics.get(name.replace("loss.", "pairs."), 0)
            if not name.startswith("loss.") or name == "loss.triplet" or count < 2:
                continue
            above = value > (1 - PLATEAU_SHARE) * math.log(count)
            if self._lasts(name, above, PLATEAU_STEPS):
                found[name] = (
                    f"plateau at log N: {name} is {value:.3f} with {count:.0f} pairs (log N = "
                    f"{math.log(count):.3f}) for {PLATEAU_STEPS} steps. Nothing is told apart; "
                    "check that modalities are joined by the right case, then raise the rate; "
                    "where encoders start from nothing, begin at --initial-scale 4."
                )
        return found

    def _lasts(self, name: str, holds: bool, num: int) -> bool:
        """Whether something has held so many times in a row."""
        seen = self._seen.setdefault(name, deque(maxlen=num))
        seen.append(holds)
        return len(seen) == num and all(seen)
