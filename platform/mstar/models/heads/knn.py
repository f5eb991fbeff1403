"""k nearest neighbours of a bag's mean features, with weighted votes.

    votes(c) = Σ exp(cos(x, xᵢ) / τ) over the k nearest training bags xᵢ of class c

as usual for judging frozen features (Wu et al. 2018). The softmax of the logits is the share of the
votes. Several classes without a vote are equal; they get a millionth together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mstar.errors import ConfigError
from mstar.models.heads.contract import HeadOutput
from mstar.models.heads.mean_space import MeanSpace, check_fitted, check_labels

_NO_VOTE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class KnnConfig:
    """Options of the nearest neighbours."""

    neighbours: int = 20
    """How many training bags vote; all, when there are fewer."""
    temperature: float = 0.07
    """τ: the smaller, the more the nearest ones count."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        if self.neighbours < 1 or not self.temperature > 0:
            raise ConfigError(
                f"knn: expected at least 1 neighbour and a temperature above 0, got "
                f"{self.neighbours} and {self.temperature}"
            )


class KNearestNeighbours(nn.Module):
    """The training bags themselves are the model."""

    vectors: Tensor
    labels: Tensor

    def __init__(self, config: KnnConfig, input_dim: int, num_outputs: int) -> None:
        """Empty until `fit` or a state is loaded."""
        super().__init__()
        self.config, self.num_outputs = config, num_outputs
        self.space = MeanSpace(input_dim)
        self.register_buffer("vectors", torch.zeros(0, input_dim))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.int64))
        self.register_load_state_dict_pre_hook(_make_room)  # type: ignore[no-untyped-call]

    def fit(
        self,
        x: Float[Tensor, "row dim"],
        offsets: Int64[Tensor, " edge"],
        labels: Int64[Tensor, " bag"],
    ) -> None:
        """Remember the training bags."""
        check_labels(labels, len(offsets) - 1, self.num_outputs)
        self.vectors = self.space.fit(x, offsets)
        self.labels = labels.to(self.vectors.device)

    def forward(
        self,
        x: Float[Tensor, "row dim"],
        offsets: Int64[Tensor, " edge"],
        labels: Int64[Tensor, " bag"] | None = None,
    ) -> HeadOutput:
        """Logarithms of the shares of the votes."""
        check_fitted(len(self.labels) > 0, "knn")
        cosines = self.space(x, offsets) @ self.vectors.T
        # a stable sort: equally near ones are taken in the order of the training bags
        nearest, places = cosines.sort(dim=1, descending=True, stable=True)
        nearest, places = (part[:, : self.config.neighbours] for part in (nearest, places))
        shares = (nearest / self.config.temperature).softmax(1)
        votes = shares.new_zeros(len(shares), self.num_outputs)
        votes = votes.scatter_add(1, self.labels[places], shares)
        smoothed = (votes + _NO_VOTE / self.num_outputs) / (1 + _NO_VOTE)
        return HeadOutput(logits=smoothed.log())


def _make_room(
    head: KNearestNeighbours, state: Mapping[str, Any], prefix: str, *args: object
) -> None:
    """Buffers as long as those of the state that is about to be loaded."""
    for name in ("vectors", "labels"):
        stored, own = state.get(prefix + name), getattr(head, name)
        if stored is not None and stored.shape[1:] == own.shape[1:]:
            setattr(head, name, own.new_zeros(stored.shape))
