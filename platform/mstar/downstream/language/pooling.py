"""From the scores of a slide's patches to its scores: the best patches count (MI-Zero).

A column is a class (or a prompt, or a report); its best patches are chosen for it alone. A slide of
fewer patches than asked for takes all of them.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn.functional import one_hot

NUMBERS_AT_ONCE = 20_000_000  # cosines of patches with texts: 80 MB


def top_means(
    scores: Float32[Tensor, "patch column"], tops: Sequence[int]
) -> Float32[Tensor, "top column"]:
    """Of each column, the mean of its best patches, for each number of them."""
    most = min(max(tops), len(scores))
    best = scores.topk(most, dim=0).values.double().cumsum(0)
    taken = torch.tensor([min(top, most) for top in tops], device=scores.device)
    return (best[taken - 1] / taken[:, None]).float()


def top_votes(
    scores: Float32[Tensor, "patch label"], tops: Sequence[int]
) -> Float32[Tensor, "top label"]:
    """Shares of the votes: the patches that are surest of any class vote for that class."""
    most = min(max(tops), len(scores))
    sure, label = scores.max(dim=1)
    voters = label[sure.topk(most).indices]
    votes = one_hot(voters, scores.shape[1]).double().cumsum(0)
    taken = torch.tensor([min(top, most) for top in tops], device=scores.device)
    return (votes[taken - 1] / taken[:, None]).float()


def text_scores(
    patches: Float32[Tensor, "patch dim"], texts: Float32[Tensor, "text dim"], tops: Sequence[int]
) -> Float32[Tensor, "top text"]:
    """`top_means` of the cosines with many texts, some columns at a time."""
    step = max(1, NUMBERS_AT_ONCE // len(patches))
    return torch.cat(
        [top_means(patches @ some.T, tops) for some in torch.split(texts, step)], dim=1
    )


def class_scores(
    patches: Float32[Tensor, "patch dim"],
    classes: Float32[Tensor, "wording label dim"],
    tops: Sequence[int],
    *,
    vote: bool,
) -> Float32[Tensor, "top wording label"]:
    """A slide's scores of the classes, worded in many ways: means of the best, or votes."""
    wordings, labels, _ = classes.shape
    if not vote:
        made = text_scores(patches, classes.flatten(0, 1), tops)
        return made.reshape(len(tops), wordings, labels)
    return torch.stack([top_votes(patches @ own.T, tops) for own in classes], dim=1)
