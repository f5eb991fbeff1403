"""Position by convolution: the tokens laid out on a square grid in their order.

The grid is not the tissue: a token's place is its rank in the bag. The three depth-wise
convolutions and the identity are one 7 × 7 convolution, whose kernel is summed up at every call;
the parameters stay apart under the public names (`proj`, `proj1`, `proj2`).
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad


class PositionGrid(nn.Module):
    """PPEG of TransMIL: 7 × 7, 5 × 5 and 3 × 3 depth-wise convolutions, added to the tokens."""

    def __init__(self, dim: int) -> None:
        """`dim`: channels of a token."""
        super().__init__()
        self.proj = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.proj1 = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.proj2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(
        self,
        tokens: Float[Tensor, "bag token dim"],
        lengths: Int64[Tensor, " bag"] | None = None,
    ) -> Float[Tensor, "bag token dim"]:
        """The tokens with their surroundings.

        Args:
            tokens: without the CLS token; a square number of them when lengths is None.
            lengths: how many tokens at the front of each bag count. Each bag then has the smallest
                grid that holds them; cells without a token are empty, like the border.
        """
        if lengths is None:
            side = round(tokens.shape[1] ** 0.5)
            grid = tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)
            return self._convolve(grid).flatten(2).transpose(1, 2)
        cells, places, side = grid_places(lengths, tokens.shape[1])
        dim = tokens.shape[2]
        with_nothing = pad(tokens, (0, 0, 0, 1))
        laid_out = with_nothing.gather(1, cells[:, :, None].expand(-1, -1, dim))
        grid = self._convolve(laid_out.transpose(1, 2).reshape(len(tokens), dim, side, side))
        back = grid.flatten(2).transpose(1, 2)
        return back.gather(1, places[:, :, None].expand(-1, -1, dim))

    def _convolve(
        self, grid: Float[Tensor, "bag dim row column"]
    ) -> Float[Tensor, "bag dim row column"]:
        wide, middle, narrow = self.proj, self.proj1, self.proj2
        kernel = wide.weight + pad(middle.weight, [1] * 4) + pad(narrow.weight, [2] * 4)
        identity = torch.zeros(7, 7, device=kernel.device, dtype=kernel.dtype)
        identity[3, 3] = 1
        assert wide.bias is not None
        assert middle.bias is not None
        assert narrow.bias is not None
        bias = wide.bias + middle.bias + narrow.bias
        return conv2d(grid, kernel + identity, bias, padding=3, groups=grid.shape[1])


def grid_places(
    lengths: Int64[Tensor, " bag"], tokens: int
) -> tuple[Int64[Tensor, "bag cell"], Int64[Tensor, "bag token"], int]:
    """Where the tokens of each bag lie on a common square canvas.

    Returns:
        For each cell its token (`tokens` for none), for each token its cell (any for those that do
        not count), and the canvas' side.
    """
    sides = lengths.double().sqrt().ceil().long()[:, None]
    side = int(sides.max())
    cell = torch.arange(side * side, device=lengths.device)
    row, column = cell // side, cell % side
    token_of_cell = row * sides + column
    empty = (column >= sides) | (token_of_cell >= lengths[:, None])
    token = torch.arange(tokens, device=lengths.device)
    cell_of_token = (token // sides) * side + token % sides
    return token_of_cell.masked_fill(empty, tokens), cell_of_token.clamp(max=len(cell) - 1), side
