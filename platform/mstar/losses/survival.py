"""Survival losses: discrete-time negative log-likelihood, and Cox's partial likelihood.

Discrete time (Zadeh and Schmid 2020), bins k = 0 … K−1, with hazards h_k = sigmoid(logit_k),
survival S_k = Π_{j ≤ k} (1 − h_j), S_{−1} = 1 and the bin y of a bag's time:

    event      −log S_{y−1} − log h_y
    censored   −log S_y
    L = (1 − α)(censored + event) + α event;      risk = −Σ_k S_k

Cox (1972) with Efron's (1977) treatment of tied times. At a time t with d events, R the sum of
exp(risk) over those still followed and D over the d:

    log-likelihood = Σ_t [ Σ_events risk − Σ_{l < d} log(R − l/d · D) ]

`cox_nll` is minus that, per event. Both are computed from logarithms: nothing is clamped.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from torch.nn.functional import logsigmoid

from mstar.errors import ConfigError, TrainingError

_BEYOND = 1e-6


def bin_edges(
    times: Float64[np.ndarray, " case"], events: Bool[np.ndarray, " case"], bins: int = 4
) -> Float64[np.ndarray, " edge"]:
    """Edges of time bins: quantiles of the event times; closed on the left.

    The outer edges are the smallest and the largest time of all, 1e-6 beyond. Many equal times make
    equal edges: the bin between them stays empty. Give the *training* split: with other cases the
    bins would know their times.

    Raises:
        TrainingError: no event, or times that are none.
    """
    if bins < 1:
        raise ConfigError(f"bins: expected at least 1, got {bins}")
    if not (np.isfinite(times).all() and (times > 0).all()):
        raise TrainingError("survival times: expected numbers above 0. Correct the label table.")
    if not events.any():
        raise TrainingError(
            f"no event among {len(times)} training cases: there is nothing to learn from. Use "
            "another split or endpoint."
        )
    edges: Float64[np.ndarray, " edge"] = np.quantile(times[events], np.linspace(0, 1, bins + 1))
    edges[0], edges[-1] = times.min() - _BEYOND, times.max() + _BEYOND
    return edges


def time_bins(
    times: Float64[np.ndarray, " case"], edges: Float64[np.ndarray, " edge"]
) -> Int64[np.ndarray, " case"]:
    """The bin of each time; times beyond the outer edges belong to the outer bins."""
    return np.searchsorted(edges[1:-1], times, side="right").astype(np.int64)


def discrete_nll(
    logits: Float[Tensor, "bag bin"],
    bin_of_bag: Int64[Tensor, " bag"],
    event: Bool[Tensor, " bag"],
    alpha: float = 0.0,
) -> Float[Tensor, ""]:
    """The discrete-time negative log-likelihood, averaged over bags."""
    if not 0 <= alpha <= 1:
        raise ConfigError(f"survival alpha: expected 0 to 1, got {alpha}")
    with torch.autocast(logits.device.type, enabled=False):
        wide = _wide(logits)
        log_survival = logsigmoid(-wide).cumsum(1)  # [bag, bin], log S_k
        before = torch.cat([torch.zeros_like(wide[:, :1]), log_survival[:, :-1]], dim=1)
        at_bin = bin_of_bag[:, None]
        with_event = -(before + logsigmoid(wide)).gather(1, at_bin)[:, 0]
        censored = -log_survival.gather(1, at_bin)[:, 0]
        return torch.where(event, with_event, (1 - alpha) * censored).mean()


def discrete_survival(logits: Float[Tensor, "bag bin"]) -> Float[Tensor, "bag bin"]:
    """S_k: the probability of no event up to the end of each bin."""
    return logsigmoid(-_wide(logits)).cumsum(1).exp()


def discrete_risk(logits: Float[Tensor, "bag bin"]) -> Float[Tensor, " bag"]:
    """One number per bag, the higher the worse."""
    return -discrete_survival(logits).sum(1)


def cox_nll(
    risk: Float[Tensor, " bag"], time: Float[Tensor, " bag"], event: Bool[Tensor, " bag"]
) -> Float[Tensor, ""]:
    """Minus the log partial likelihood per event; zero, with a gradient of zero, without events.

    Args:
        risk: log hazard ratios.
        time: of event or censoring. Who was censored at a time was still followed at it.
        event: True where it happened.
    """
    with torch.autocast(risk.device.type, enabled=False):
        if not bool(event.any()):
            return risk.float().sum() * 0
        order = time.argsort(descending=True)
        wide, time, event = risk.double()[order], time[order], event[order]
        _, group, sizes = torch.unique_consecutive(time, return_inverse=True, return_counts=True)
        followed = wide.logcumsumexp(0)[sizes.cumsum(0) - 1]  # log R of each time
        wide, group = wide[event], group[event]  # from here on the events alone, still in order
        times, tied, count = torch.unique_consecutive(
            group, return_inverse=True, return_counts=True
        )
        log_r, log_d = followed[times][tied], _group_logsumexp(wide, tied, len(times))[tied]
        before = torch.arange(len(wide), device=wide.device) - (count.cumsum(0) - count)[tied]
        share = before.double() / count[tied]  # l / d
        terms = log_r + torch.log1p(-share * (log_d - log_r).exp())
        loss: Tensor = (terms - wide).mean()
        return loss.to(risk.dtype if risk.dtype == torch.float64 else torch.float32)


def _group_logsumexp(
    values: Float[Tensor, " row"], group: Int64[Tensor, " row"], groups: int
) -> Float[Tensor, " group"]:
    """The log Σ exp within each group; every group has a row."""
    lowest = torch.full((groups,), -torch.inf, dtype=values.dtype, device=values.device)
    largest = lowest.scatter_reduce(0, group, values.detach(), "amax")
    sums = torch.zeros_like(largest).index_add(0, group, (values - largest[group]).exp())
    return sums.log() + largest


def _wide(logits: Float[Tensor, "bag bin"]) -> Float[Tensor, "bag bin"]:
    return logits if logits.dtype == torch.float64 else logits.float()
