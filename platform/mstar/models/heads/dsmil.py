"""DSMIL: dual-stream multiple instance learning (Li et al. 2021).

    first stream    s = W₀ h + b₀,  m_c = the patch with the largest s_c        (max pooling)
    second stream   q = Q(h);  A_c = softmax over the bag of ⟨q, q(m_c)⟩ / √d
                    B_c = Σ A_c h;  b = W_b [B_1 … B_C]
    logits = ½ (s(m) + b)

so the patches are weighed by their likeness to the most critical one of each class.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mstar.models.heads.contract import Bags, HeadOutput, computable, read_bags
from mstar.models.heads.layers import FeatureLayer, draw_weights
from mstar.models.heads.segments import bag_softmax, largest_rows, weighted_sums


@dataclass(frozen=True, slots=True, kw_only=True)
class DsmilConfig:
    """Options of DSMIL."""

    hidden: int = 512
    """Length of a patch's vector after the first layer; 512 is that of the published features. 0
    leaves the layer out: the features themselves are weighed."""
    query_dim: int = 128
    """Length of a query (published: 128)."""
    dropout: float = 0.25
    """Dropout after the first layer, as in the other heads; a choice."""


class Dsmil(nn.Module):
    """Max pooling finds the critical patches, attention gathers what is like them."""

    def __init__(self, config: DsmilConfig, input_dim: int, num_outputs: int) -> None:
        """Draws the weights."""
        super().__init__()
        self.config, self.input_dim = config, input_dim
        width = config.hidden or input_dim
        self.feature = (
            FeatureLayer(input_dim, width, config.dropout) if config.hidden else nn.Identity()
        )
        self.instance = nn.Linear(width, num_outputs)
        self.query = nn.Sequential(
            nn.Linear(width, config.query_dim),
            nn.ReLU(),
            nn.Linear(config.query_dim, config.query_dim),
            nn.Tanh(),
        )
        self.bag = nn.Linear(num_outputs * width, num_outputs)
        draw_weights(self)

    def forward(
        self,
        x: Float[Tensor, "row dim"],
        offsets: Int64[Tensor, " edge"],
        labels: Int64[Tensor, " bag"] | None = None,
    ) -> HeadOutput:
        """Scores and the attention of every class, of packed bags."""
        bags = read_bags(x, offsets, self.input_dim)
        h = self.feature(x) if self.config.hidden else computable(x)  # [row, hidden]
        s = self.instance(h)  # [row, class]
        critical = largest_rows(s, bags)  # [bag, class]
        s_critical = s.gather(0, critical)
        a = bag_softmax(self._likeness(h, critical, bags), bags)  # [row, class]
        b = weighted_sums(a, h, bags)  # [bag, class, hidden]
        logits = (s_critical + self.bag(b.flatten(1))) / 2
        return HeadOutput(logits=logits, attention=a)

    def _likeness(
        self,
        h: Float[Tensor, "row dim"],
        critical: Int64[Tensor, "bag class"],
        bags: Bags,
    ) -> Float[Tensor, "row class"]:
        """Products of the patches' queries with those of their bag's critical patches."""
        q = self.query(h)
        pairs = zip(bags.cut(q), q[critical], strict=True)
        likeness = torch.cat([own @ of_critical.T for own, of_critical in pairs])
        scaled: Tensor = likeness * q.shape[1] ** -0.5
        return scaled
