"""Harrell's C-index for all resamples at once.

Which pairs are comparable and which of those are concordant does not depend on the resample: with
the weights w of a resample, C = wᵀ A w / wᵀ B w for two fixed matrices. Their entries are 0, ½ and
1 and weights are whole numbers, so float32 products are exact (below 2²³) and fast.

A pair (i, j) is comparable when i had the event and j was still followed after it: t_i < t_j, or
t_i = t_j and j is censored. Risks that differ by at most 1e-8 are tied and count one half.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from mstar.downstream.statistics.evaluated import blocks, ratio

TIED_RISK = 1e-8


def c_index(
    times: Float[np.ndarray, " sample"],
    events: Bool[np.ndarray, " sample"],
    risks: Float[np.ndarray, " sample"],
    weights: Int[np.ndarray, "resample sample"],
) -> Float[np.ndarray, " resample"]:
    """Share of comparable pairs in which the higher risk died first; NaN without such pairs.

    A sample that is drawn twice is no pair with itself.
    """
    concordant, comparable = np.zeros(len(weights)), np.zeros(len(weights))
    drawn = weights.astype(np.float32).T  # [sample, resample]
    died = np.flatnonzero(events)
    for rows in blocks(len(died), max(len(times), len(weights))):
        who = died[rows]
        later, ordered = _pairs(times, events, risks, who)
        own = drawn[who].astype(np.float64)
        concordant += np.einsum("er,er->r", own, ordered @ drawn)
        comparable += np.einsum("er,er->r", own, later @ drawn)
    return ratio(concordant, comparable)


def _pairs(
    times: Float[np.ndarray, " sample"],
    events: Bool[np.ndarray, " sample"],
    risks: Float[np.ndarray, " sample"],
    who: Int[np.ndarray, " event"],
) -> tuple[Float[np.ndarray, "event sample"], Float[np.ndarray, "event sample"]]:
    """For some events: whom each is comparable with, and 1, ½ or 0 by the order of the risks."""
    own_time, own_risk = times[who, None], risks[who, None]
    later = (times > own_time) | ((times == own_time) & ~events)
    ahead = own_risk - risks
    score = np.where(np.abs(ahead) <= TIED_RISK, 0.5, ahead > 0)
    return later.astype(np.float32), (score * later).astype(np.float32)
