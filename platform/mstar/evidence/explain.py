"""How each head's patches are scored: one table, a row for every head.

What a number means depends on the head; its kind says so:

    attention     what the head itself weighs a patch with; a bag's sum to one
    co_attention  the same, asked by genes: their mean over the groups, then each group's
    instance      what the head's own classifier of patches says of a patch
    gradient      gradient × input: Σ_j x_j ∂t / ∂x_j  (`gradient.py`)
    occlusion     what t loses when a patch is left out (`occlusion.py`)

The target t is the logit of a class less the mean of all classes' logits (what the softmax sees),
or the risk. Scores of several models (folds, seeds) are averaged as they are, before any ranking.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from mstar.errors import ConfigError, FeatureError
from mstar.evidence import gradient, occlusion
from mstar.evidence.asked import Asked
from mstar.models.heads.cmta import Cmta
from mstar.models.heads.contract import computable

Method = Literal["auto", "gradient", "occlusion"]
Found = Mapping[str, Float[Tensor, " patch"]]
"""Class or group name → a number per patch; the name is empty where there is no class."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RawLayer:
    """One number per patch of a bag, which may be several slides; see `PatchScores`."""

    kind: str
    class_name: str
    values: Float32[np.ndarray, " patch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to score patches. source: where it is from, for records and `heatmaps.md`."""

    kind: str
    source: str
    score: Callable[[Asked], Found]


def _attention(asked: Asked) -> Found:
    """The weights that a head gives; a column for each output where it has several."""
    with torch.no_grad():
        weights = asked.output(asked.x).attention
    assert weights is not None
    if weights.dim() == 1:
        return {"": weights}
    return dict(zip(asked.output_names, weights.unbind(1), strict=True))


def _of_groups(asked: Asked) -> Found:
    """The weights of each group of genes, and first their mean."""
    with torch.no_grad():
        weights = asked.output(asked.x).attention
    assert weights is not None
    return _with_mean(asked, weights)


def _of_cmta(asked: Asked) -> Found:
    """The cross-attention in which groups of genes ask for patches; the head does not return it."""
    head = asked.head
    assert isinstance(head, Cmta)
    seen: list[Tensor] = []

    def look(module: nn.Module, given: tuple[Tensor, ...], _: object) -> None:
        hook.remove()  # or the call below would be looked at too
        seen.append(module(*given[:3], need_weights=True)[1][0].T)

    hook = head.genes_ask.register_forward_hook(look)
    with torch.no_grad():
        asked.output(asked.x)
    return _with_mean(asked, seen[0])


def _with_mean(asked: Asked, weights: Float[Tensor, "patch group"]) -> Found:
    groups = dict(zip(asked.group_names, weights.unbind(1), strict=True))
    return {"": weights.mean(1), **groups}


@torch.no_grad()
def _clam_patches(asked: Asked) -> Found:
    """Probability that a patch is evidence for a class; none where patches were not trained."""
    head = asked.head
    if asked.scores != "softmax" or not head.config.instance_weight:  # type: ignore[union-attr]
        return {}
    h = head.feature(asked.x)  # type: ignore[operator]
    own = [one(h).float().softmax(1)[:, 1] for one in head.instances]  # type: ignore[union-attr]
    return dict(zip(asked.output_names, own, strict=True))


@torch.no_grad()
def _dsmil_patches(asked: Asked) -> Found:
    """Logits of the first stream, of which the largest of each class enters the bag's."""
    h = asked.head.feature(computable(asked.x))  # type: ignore[operator]
    scores = asked.head.instance(h)  # type: ignore[operator]
    return dict(zip(asked.output_names, scores.unbind(1), strict=True))


@torch.no_grad()
def _linear_patches(asked: Asked) -> Found:
    """The linear layer on each patch: the mean over the patches is what it says of the bag."""
    layer = asked.head.risk if asked.name == "cox_linear" else asked.head.classifier
    scores = layer(asked.x)  # type: ignore[operator]
    return dict(zip(asked.output_names, scores.unbind(1), strict=True))


ATTENTION = Way(kind="attention", source="Ilse et al. 2018", score=_attention)
GRADIENT = Way(kind="gradient", source="Shrikumar et al. 2016", score=gradient.scores)
OCCLUSION = Way(kind="occlusion", source="Zeiler and Fergus 2014", score=occlusion.scores)
INSTANCE = Way(kind="instance", source="a linear model's own terms", score=_linear_patches)

WAYS: dict[str, tuple[Way, ...]] = {
    "linear": (INSTANCE,),
    "knn": (OCCLUSION,),
    "prototype": (OCCLUSION,),
    "abmil": (ATTENTION,),
    "abmil_gated": (ATTENTION,),
    "clam_sb": (ATTENTION, Way(kind="instance", source="Lu et al. 2021", score=_clam_patches)),
    "clam_mb": (ATTENTION, Way(kind="instance", source="Lu et al. 2021", score=_clam_patches)),
    "dsmil": (
        Way(kind="attention", source="Li et al. 2021", score=_attention),
        Way(kind="instance", source="Li et al. 2021", score=_dsmil_patches),
    ),
    "transmil": (GRADIENT,),
    "transmil_plus": (GRADIENT,),
    "cox_linear": (INSTANCE,),
    "snn": (),  # it does not look at patches
    "mcat": (Way(kind="co_attention", source="Chen et al. 2021", score=_of_groups),),
    "porpoise": (ATTENTION,),
    "motcat": (Way(kind="co_attention", source="Xu and Chen 2023", score=_of_groups),),
    "cmta": (Way(kind="co_attention", source="Zhou and Chen 2023", score=_of_cmta),),
}
"""Head → how its patches are scored; the first is what pictures show by default."""

OTHER: dict[str, Way] = {"gradient": GRADIENT, "occlusion": OCCLUSION}
"""What can be asked of any head that looks at patches, by --method."""


def ways_of(head: str, method: Method) -> tuple[Way, ...]:
    """How the patches of a head are scored.

    Raises:
        ConfigError: it does not look at patches, or cannot be asked so.
    """
    if head not in WAYS or not WAYS[head]:
        able = ", ".join(name for name, ways in WAYS.items() if ways)
        raise ConfigError(f"head {head}: it does not score patches. Heads that can: {able}.")
    if method == "gradient" and head == "knn":
        raise ConfigError("head knn: it has steps, and so no gradient. Use --method occlusion.")
    return WAYS[head] if method == "auto" else (OTHER[method],)


def explain(asked: Sequence[Asked], ways: Sequence[Way]) -> tuple[RawLayer, ...]:
    """The layers of a bag: the mean over its models, the same bag being asked of each.

    Raises:
        FeatureError: a score is not finite.
    """
    layers = []
    for way in ways:
        found = [way.score(one) for one in asked]
        for name in found[0]:
            values = np.stack([_numbers(one[name]) for one in found]).mean(0, dtype=np.float64)
            if not np.isfinite(values).all():
                raise FeatureError(
                    f"{way.kind} {name}: expected finite scores, got "
                    f"{values[~np.isfinite(values)][0]}. Check the features of this slide."
                )
            layers.append(
                RawLayer(kind=way.kind, class_name=name, values=values.astype(np.float32))
            )
    return tuple(layers)


def _numbers(values: Float[Tensor, " patch"]) -> Float32[np.ndarray, " patch"]:
    return values.detach().float().cpu().numpy()
