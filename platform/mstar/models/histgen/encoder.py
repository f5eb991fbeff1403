"""Patches → one token a region: memory, regions, slide, regions again, pooling.

    map       Linear dim→d_vf, Linear d_vf→width, ReLU, dropout
    context   evenly spaced patches read the shared memory; every patch attends to what they found
    regions   runs of `region_tokens - 1` patches and the region's own token see one another
    slide     the regions' own tokens of a bag see one another, and go back to their places
    regions   once more
    pooling   attention within each region gives its token for the decoder

Regions of all bags are one batch, so bags are packed without padding but for their last region.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mstar.models.heads.contract import Bags, computable
from mstar.models.heads.layers import AttentionNetwork
from mstar.models.histgen.attention import Attention, KeysValues, Layer, SharedMemory
from mstar.models.histgen.config import HistGenConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """What the decoder reads of some bags.

    tokens: one a region, filled up to the longest bag. mask: True where there is one.
    """

    tokens: Float[Tensor, "bag region width"]
    mask: Bool[Tensor, "bag region"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Regions:
    """Where the patches of packed bags go.

    of_row, slot: region and place in it of each patch.
    filled: where a region has a token: its patches, and its own in the last place.
    of_bag, place: bag of each region, and which of its regions it is.
    """

    of_row: Int64[Tensor, " row"]
    slot: Int64[Tensor, " row"]
    filled: Bool[Tensor, "region token"]
    of_bag: Int64[Tensor, " region"]
    place: Int64[Tensor, " region"]


class Encoder(nn.Module):
    """The local–global encoder with its memory."""

    def __init__(self, config: HistGenConfig, input_dim: int) -> None:
        """Draw the weights from torch's global generator."""
        super().__init__()
        c, self.config = config, config
        self.map = nn.Sequential(
            nn.Linear(input_dim, c.d_vf),
            nn.Linear(c.d_vf, c.width),
            nn.ReLU(),
            nn.Dropout(c.feature_dropout),
        )
        self.context = Attention(c.width, c.heads, c.dropout)
        self.region_token = nn.Parameter(torch.randn(c.width) * 0.02)
        self.local = nn.ModuleList(Layer(c.width, c.heads, c.ff, c.dropout) for _ in range(2))
        self.slide = Layer(c.width, c.heads, c.ff, c.dropout)
        self.norm = nn.LayerNorm(c.width)
        self.pool = AttentionNetwork(c.width, c.width, 1, gated=False)

    def forward(self, x: Float[Tensor, "row dim"], bags: Bags, memory: SharedMemory) -> Encoded:
        """One token a region of each bag."""
        slots = memory.keys_values(memory.slots[None])
        rows = self._in_parts(lambda part: self.map(computable(part)), x)
        found = [self._found(bag, memory, slots) for bag in bags.cut(rows)]
        rows = torch.cat(
            [
                self._in_parts(lambda part, seen=seen: self._with_context(part, seen), bag)
                for bag, seen in zip(bags.cut(rows), found, strict=True)
            ]
        )
        regions = cut_regions(bags, self.config.region_tokens)
        tokens = self._placed(rows, regions)
        tokens = self._local(0, tokens, regions)
        tokens = self._whole_slide(tokens, regions, len(bags))
        tokens = self._local(1, tokens, regions)
        pooled = self._in_parts(self._pooled, tokens, regions.filled)
        return Encoded(
            tokens=_by_bag(pooled, regions, len(bags)), mask=_region_mask(regions, len(bags))
        )

    def _found(
        self, bag: Float[Tensor, "row width"], memory: SharedMemory, slots: KeysValues
    ) -> KeysValues:
        """What the bag's evenly spaced patches read in the memory, as keys and values."""
        at = evenly_spaced(len(bag), self.config.prototypes).to(bag.device)
        return self.context.keys_values(memory.read(bag[at][None], slots))

    def _with_context(
        self, part: Float[Tensor, "row width"], seen: KeysValues
    ) -> Float[Tensor, "row width"]:
        result: Tensor = part + self.context(part[None], seen)[0]
        return result

    def _placed(
        self, rows: Float[Tensor, "row width"], regions: Regions
    ) -> Float[Tensor, "region token width"]:
        """The patches in their regions, zeros where the last one of a bag has none."""
        size, width = regions.filled.shape[1], rows.shape[1]
        own = self.region_token.to(rows.dtype).expand(len(regions.filled), 1, width)
        empty = rows.new_zeros(len(regions.filled), size - 1, width)
        placed = empty.index_put((regions.of_row, regions.slot), rows)
        return torch.cat([placed, own], 1)

    def _local(
        self, layer: int, tokens: Float[Tensor, "region token width"], regions: Regions
    ) -> Float[Tensor, "region token width"]:
        """Each region by itself."""

        def see(
            part: Float[Tensor, "part token width"], filled: Bool[Tensor, "part token"]
        ) -> Float[Tensor, "part token width"]:
            mask = None if bool(filled.all()) else filled[:, None, None, :]
            result: Tensor = self.local[layer](part, mask)
            return result

        return self._in_parts(see, tokens, regions.filled)

    def _whole_slide(
        self, tokens: Float[Tensor, "region token width"], regions: Regions, num_bags: int
    ) -> Float[Tensor, "region token width"]:
        """The regions' tokens of each bag see one another; what they become goes back."""
        at = 0 if self.config.paper_region_token else tokens.shape[1] - 1
        own = _by_bag(tokens[:, at], regions, num_bags)
        mask = _region_mask(regions, num_bags)
        seen = self.slide(own, None if bool(mask.all()) else mask[:, None, None, :])
        back = seen[regions.of_bag, regions.place][:, None].to(tokens.dtype)
        return torch.cat([tokens[:, :at], back, tokens[:, at + 1 :]], 1)

    def _pooled(
        self, tokens: Float[Tensor, "region token width"], filled: Bool[Tensor, "region token"]
    ) -> Float[Tensor, "region width"]:
        normed = self.norm(tokens)
        scores = self.pool(normed.flatten(0, 1)).view(filled.shape).float()
        weights = scores.masked_fill(~filled, float("-inf")).softmax(1).to(normed.dtype)
        pooled: Tensor = (weights[:, None] @ normed)[:, 0]
        return pooled

    def _in_parts(self, function: Callable[..., Tensor], *of: Tensor) -> Tensor:
        """A function of rows (or regions), some at a time; long ones keep only their ends."""
        tokens = of[0].shape[1] if of[0].dim() == 3 else 1
        step = max(1, self.config.checkpoint_rows // tokens)
        if len(of[0]) <= step:
            return function(*of)
        parts = zip(*(torch.split(one, step) for one in of), strict=True)
        if not torch.is_grad_enabled():
            return torch.cat([function(*part) for part in parts])
        return torch.cat([checkpoint(function, *part, use_reentrant=False) for part in parts])


def evenly_spaced(rows: int, wanted: int) -> Int64[Tensor, " chosen"]:
    """Places of evenly spaced rows, the first and the last among them; all where few."""
    if rows <= wanted:
        return torch.arange(rows)
    if wanted == 1:
        return torch.zeros(1, dtype=torch.int64)
    return torch.arange(wanted) * (rows - 1) // (wanted - 1)


def cut_regions(bags: Bags, region_tokens: int) -> Regions:
    """Runs of patches of each bag, the last one shorter; none holds patches of two bags."""
    patches, device = region_tokens - 1, bags.of_row.device
    counts = torch.tensor([-(-size // patches) for size in bags.sizes], device=device)
    first = counts.cumsum(0) - counts
    in_bag = torch.arange(len(bags.of_row), device=device) - bags.offsets[bags.of_row]
    of_row, slot = first[bags.of_row] + in_bag // patches, in_bag % patches
    filled = torch.zeros(int(counts.sum()), region_tokens, dtype=torch.bool, device=device)
    filled[of_row, slot] = True
    filled[:, -1] = True
    of_bag = torch.repeat_interleave(torch.arange(len(bags), device=device), counts)
    place = torch.arange(len(filled), device=device) - first[of_bag]
    return Regions(of_row=of_row, slot=slot, filled=filled, of_bag=of_bag, place=place)


def _by_bag(
    rows: Float[Tensor, "region width"], regions: Regions, num_bags: int
) -> Float[Tensor, "bag most width"]:
    most = int(regions.place.max()) + 1
    empty = rows.new_zeros(num_bags, most, rows.shape[1])
    return empty.index_put((regions.of_bag, regions.place), rows)


def _region_mask(regions: Regions, num_bags: int) -> Bool[Tensor, "bag most"]:
    most = int(regions.place.max()) + 1
    mask = torch.zeros(num_bags, most, dtype=torch.bool, device=regions.place.device)
    mask[regions.of_bag, regions.place] = True
    return mask
