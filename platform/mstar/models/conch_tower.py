"""CONCH's image tower: ViT-B/16 at 448 px, pooled by the attention of one learned query.

The vector is the one before the projection to the space of texts, 512 numbers, as its authors
recommend for heads that are trained on it.
"""

from typing import Final

import torch
from torch import Tensor, nn

from mstar.models.timm_models import timm_model

WIDTH: Final = 768
DIM: Final = 512
HEADS: Final = 8


class QueryPool(nn.Module):
    """One learned query that attends to all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, DIM))
        self.attn = nn.MultiheadAttention(DIM, HEADS, kdim=WIDTH, vdim=WIDTH, batch_first=True)
        self.ln_q = nn.LayerNorm(DIM)
        self.ln_k = nn.LayerNorm(WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        """The pooled vector of each image."""
        keys = self.ln_k(tokens)
        query = self.ln_q(self.query)[None].expand(len(tokens), -1, -1)
        pooled: Tensor = self.attn(query, keys, keys, need_weights=False)[0]
        return pooled[:, 0]


class ConchTower(nn.Module):
    """Trunk, pooling, layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = timm_model(
            "vit_base_patch16_224", img_size=448, global_pool="", dynamic_img_size=True
        )
        self.attn_pool_contrast = QueryPool()
        self.ln_contrast = nn.LayerNorm(DIM)

    def forward(self, images: Tensor) -> Tensor:
        """[batch, 512]."""
        vectors: Tensor = self.ln_contrast(self.attn_pool_contrast(self.trunk(images)))
        return vectors
