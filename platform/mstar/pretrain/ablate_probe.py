"""What can be read from frozen features about a case: a linear probe, and ABMIL, cross-validated.

The linear probe is logistic regression on the mean of a case's patches. ABMIL (Ilse et al. 2018,
un-gated) learns which patches to look at. Both are trained and tested on held-out cases alone, by
patient, in folds that are the same for every arm; a case's score is that of the fold which did not
see it.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, pad

from mstar.training.seeds import seed_of

Bags = Sequence[Float32[np.ndarray, "patch dim"]]
Labels = Bool[np.ndarray, " case"]
Scores = Float[np.ndarray, " case"]
Fit = Callable[[Bags, Labels, Bags, int], Scores]

RIDGE = 0.03  # of the linear probe, on standardised features
HIDDEN, ATTENTION = 32, 16
ABMIL_STEPS, ABMIL_LR, ABMIL_DECAY, ABMIL_DROPOUT = 80, 3e-3, 1e-2, 0.25
ABMIL_DRAWS = 2  # initial weights whose logits are averaged


def auc(labels: Labels, scores: Scores) -> float:
    """Area under the receiver operating characteristic; ties count half."""
    positive, negative = scores[labels], scores[~labels]
    assert len(positive), "no positive case"
    assert len(negative), "no negative case"
    above = (positive[:, None] > negative[None]).mean()
    return float(above + (positive[:, None] == negative[None]).mean() / 2)


def folds_of(labels: Labels, num_folds: int, *, seed: int) -> Int64[np.ndarray, " case"]:
    """The fold of each case, both classes spread evenly over them."""
    fold = np.empty(len(labels), np.int64)
    rng = np.random.default_rng(seed_of("folds", seed))
    for value in (False, True):
        places = rng.permutation(np.flatnonzero(labels == value))
        fold[places] = np.arange(len(places)) % num_folds
    return fold


def cross_validated(
    fit: Fit, bags: Bags, labels: Labels, folds: Int64[np.ndarray, " case"], *, seed: int = 0
) -> float:
    """Mean over the folds of the area under the curve on the cases left out.

    Scores of two folds come from two models, so they are never ranked against each other.
    """
    found = []
    for fold in range(int(folds.max()) + 1):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        known, asked = ([bags[n] for n in some.tolist()] for some in (train, test))
        scores = fit(known, labels[train], asked, seed)
        found.append(auc(labels[test], scores))
    return float(np.mean(found))


def linear(bags: Bags, labels: Labels, others: Bags, seed: int) -> Scores:
    """Scores of other cases by logistic regression on mean features; nothing is drawn."""
    train, test = (
        np.stack([bag.mean(0) for bag in some]).astype(np.float64) for some in (bags, others)
    )
    centre, scale = train.mean(0), train.std(0) + 1e-6
    inputs = torch.from_numpy((train - centre) / scale)
    wanted = torch.from_numpy(labels.astype(np.float64))
    weight = torch.zeros(inputs.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(inputs @ weight + bias, wanted)
        loss = loss + RIDGE * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    found: Scores = ((test - centre) / scale) @ weight.detach().numpy() + bias.item()
    return found


class Abmil(nn.Module):
    """Attention-based pooling of a bag, then one logit."""

    def __init__(self, dim: int) -> None:
        """Small: the cohorts are."""
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(dim, HIDDEN), nn.ReLU(), nn.Dropout(ABMIL_DROPOUT))
        self.attention = nn.Sequential(
            nn.Linear(HIDDEN, ATTENTION), nn.Tanh(), nn.Linear(ATTENTION, 1)
        )
        self.head = nn.Linear(HIDDEN, 1)

    def forward(
        self, bags: Float32[Tensor, "bag patch dim"], mask: Bool[Tensor, "bag patch"]
    ) -> Float32[Tensor, " bag"]:
        """The logit of each bag."""
        hidden = self.embed(bags)  # [B, N, H]
        scores = self.attention(hidden)[:, :, 0].masked_fill(~mask, -torch.inf)
        pooled = (scores.softmax(1)[:, :, None] * hidden).sum(1)
        logits: Tensor = self.head(pooled)[:, 0]
        return logits


def abmil(bags: Bags, labels: Labels, others: Bags, seed: int) -> Scores:
    """Scores of other cases by ABMIL, the mean over a few draws of its initial weights."""
    stacked = np.concatenate(bags)
    centre, scale = stacked.mean(0), stacked.std(0) + 1e-6
    train, mask = _padded([(bag - centre) / scale for bag in bags])
    test, test_mask = _padded([(bag - centre) / scale for bag in others])
    wanted = torch.from_numpy(labels.astype(np.float32))
    with torch.random.fork_rng(devices=[]):
        logits = [
            _fitted(train, mask, wanted, seed_of("abmil", seed, draw))(test, test_mask)
            for draw in range(ABMIL_DRAWS)
        ]
    return torch.stack(logits).mean(0).detach().double().numpy()


def _fitted(
    bags: Float32[Tensor, "bag patch dim"],
    mask: Bool[Tensor, "bag patch"],
    wanted: Float32[Tensor, " bag"],
    seed: int,
) -> Abmil:
    """Trained on whole batches for a fixed number of steps, so that no case selects a model."""
    torch.manual_seed(seed)
    model = Abmil(bags.shape[2])
    optimizer = torch.optim.AdamW(model.parameters(), lr=ABMIL_LR, weight_decay=ABMIL_DECAY)
    for _ in range(ABMIL_STEPS):
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(model(bags, mask), wanted)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


def _padded(bags: Bags) -> tuple[Float32[Tensor, "bag patch dim"], Bool[Tensor, "bag patch"]]:
    longest = max(map(len, bags))
    padded = [pad(torch.from_numpy(bag).float(), (0, 0, 0, longest - len(bag))) for bag in bags]
    mask = torch.arange(longest)[None] < torch.tensor([len(bag) for bag in bags])[:, None]
    return torch.stack(padded), mask


PROBES: dict[str, Fit] = {"linear": linear, "abmil": abmil}
