"""CLAM: clustering-constrained attention MIL (Lu et al. 2021), one branch or one per class.

    h = Dropout(ReLU(W x))
    a_b = softmax over the bag of  w_b' (tanh(V h) ⊙ sigmoid(U h))      b: the one, or each class
    single branch (SB): logits = C · Σ a h + c           MB: logit_c = ⟨C_c, Σ a_c h⟩ + c_c

In training each class has a classifier of patches: of a bag of that class, the most attended
patches are taken for evidence and the least attended for none, and a smooth top-1 SVM loss (Berrada
et al. 2018) holds it to that. With `exclusive_classes` the most attended patches of a bag are also
evidence against each other class. The published loss is 0.7 bag + 0.3 patches; the bag loss has
weight 1 here, so that of the patches has 3/7.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mstar.errors import ConfigError
from mstar.models.heads.contract import Bags, HeadOutput, read_bags
from mstar.models.heads.layers import AttentionNetwork, FeatureLayer, draw_weights
from mstar.models.heads.segments import bag_softmax, places_in_bag, rows_by_score, weighted_sums

SVM_MARGIN = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClamConfig:
    """Options of CLAM."""

    hidden: int = 512
    """Length of a patch's vector after the first layer (published: 512)."""
    attention_dim: int = 256
    """Length inside the gated attention network (published: 256)."""
    dropout: float = 0.25
    """Dropout after the first layer and in the attention network (published: 0.25)."""
    num_instances: int = 8
    """Most, and least, attended patches of a bag that the patch loss looks at (published: 8). Of
    small bags at most half, so that none is both; a bag of one patch has no patch loss."""
    instance_weight: float = 3 / 7
    """Weight of the patch loss beside the bag loss; 0 leaves it out."""
    exclusive_classes: bool = False
    """Evidence for a class is evidence against the others (published: `subtyping`, off)."""
    svm_temperature: float = 1.0
    """Smoothness of the SVM loss (published: 1)."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        if self.num_instances < 1 or self.instance_weight < 0 or not self.svm_temperature > 0:
            raise ConfigError(
                "clam: expected num_instances of at least 1, instance_weight from 0 up and "
                f"svm_temperature above 0, got {self.num_instances}, {self.instance_weight} and "
                f"{self.svm_temperature}"
            )


class Clam(nn.Module):
    """Gated attention with a loss on the patches that it finds."""

    def __init__(
        self, config: ClamConfig, input_dim: int, num_outputs: int, *, branches: int
    ) -> None:
        """`branches`: 1 or num_outputs. Draws the weights."""
        super().__init__()
        assert branches in (1, num_outputs)
        self.config, self.input_dim, self.branches = config, input_dim, branches
        self.feature = FeatureLayer(input_dim, config.hidden, config.dropout)
        self.attention = AttentionNetwork(
            config.hidden, config.attention_dim, branches, gated=True, dropout=config.dropout
        )
        self.classifier = nn.Linear(config.hidden, num_outputs)
        self.instances = nn.ModuleList(nn.Linear(config.hidden, 2) for _ in range(num_outputs))
        draw_weights(self)

    def forward(
        self,
        x: Float[Tensor, "row dim"],
        offsets: Int64[Tensor, " edge"],
        labels: Int64[Tensor, " bag"] | None = None,
    ) -> HeadOutput:
        """Scores and attention of packed bags; in training with labels, the patch loss."""
        bags = read_bags(x, offsets, self.input_dim)
        h = self.feature(x)  # [row, hidden]
        a = bag_softmax(self.attention(h), bags)  # [row, branch]
        z = weighted_sums(a, h, bags)  # [bag, branch, hidden]
        logits = (z * self.classifier.weight).sum(2) + self.classifier.bias  # [bag, class]
        wanted = self.training and labels is not None and self.config.instance_weight > 0
        loss = self._patch_loss(h, a, bags, labels) if wanted and labels is not None else None
        shown = a if self.branches > 1 else a[:, 0]
        return HeadOutput(logits=logits, attention=shown, extra_loss=loss)

    def _patch_loss(
        self,
        h: Float[Tensor, "row dim"],
        attention: Float[Tensor, "row branch"],
        bags: Bags,
        labels: Int64[Tensor, " bag"],
    ) -> Float[Tensor, ""]:
        """Weighted mean over bags of the patch losses, in float32."""
        own = labels.to(h.device)
        of_bags = h.new_zeros(len(bags), dtype=torch.float32)
        for label in self._classes(labels):
            branch = label if self.branches > 1 else 0
            order = rows_by_score(attention[:, branch], bags)
            chosen, target = self._evidence(own == label, bags)
            logits = self.instances[label](h[order[chosen]]).float()
            losses = smooth_svm(logits, target[chosen], self.config.svm_temperature)
            bag = bags.of_row[chosen]  # an order within bags leaves each its rows
            counts = bag.bincount(minlength=len(bags)).clamp(min=1)
            of_bags = of_bags + torch.zeros_like(of_bags).index_add(0, bag, losses) / counts
        if self.config.exclusive_classes:
            of_bags = of_bags / len(self.instances)
        return self.config.instance_weight * of_bags.mean()

    def _classes(self, labels: Int64[Tensor, " bag"]) -> Iterable[int]:
        """Whose patch classifiers have something to learn from these bags."""
        if self.config.exclusive_classes:
            return range(len(self.instances))
        present: list[int] = torch.unique(labels).tolist()
        return present

    def _evidence(
        self, own: Bool[Tensor, " bag"], bags: Bags
    ) -> tuple[Bool[Tensor, " row"], Int64[Tensor, " row"]]:
        """Which places of the ordered bags are looked at, and what they should be taken for."""
        sizes = bags.offsets.diff()
        count = (sizes // 2).clamp(max=self.config.num_instances)
        place, bag = places_in_bag(bags), bags.of_row
        most = place < count[bag]
        least = place >= (sizes - count)[bag]
        of_own = own[bag]
        chosen = of_own & (most | least)
        if self.config.exclusive_classes:
            chosen = chosen | (~of_own & most)
        return chosen, (of_own & most).long()


def smooth_svm(
    logits: Float[Tensor, "row class"], targets: Int64[Tensor, " row"], temperature: float
) -> Float[Tensor, " row"]:
    """The smooth top-1 SVM loss: τ log Σⱼ exp((margin · [j ≠ y] + sⱼ − s_y) / τ)."""
    score = logits.gather(1, targets[:, None])
    margins = torch.full_like(logits, SVM_MARGIN).scatter(1, targets[:, None], 0.0)
    return temperature * ((logits - score + margins) / temperature).logsumexp(1)


def build_clam_sb(config: ClamConfig, input_dim: int, num_outputs: int) -> Clam:
    """One attention branch for all classes."""
    return Clam(config, input_dim, num_outputs, branches=1)


def build_clam_mb(config: ClamConfig, input_dim: int, num_outputs: int) -> Clam:
    """An attention branch for each class."""
    return Clam(config, input_dim, num_outputs, branches=num_outputs)
