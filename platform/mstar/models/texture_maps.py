"""Maps of a patch and what they are reduced to; the steps that texture measures are made of."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

Map = Float[Tensor, "batch height width"]
Scalars = dict[str, Float[Tensor, " batch"]]


def unit_vector(vector: tuple[float, ...]) -> list[float]:
    length = float(np.linalg.norm(vector))
    return [value / length for value in vector]


def blur_matrix(side: int, sigma: float) -> np.ndarray:
    """A Gaussian as a matrix to multiply rows or columns with; mirrored at the borders."""
    reach = int(4 * sigma) + 1
    matrix, rows = np.zeros((side, side)), np.arange(side)
    for offset in range(-reach, reach + 1):
        columns = rows + offset
        columns = np.where(columns < 0, -1 - columns, columns)
        columns = np.where(columns >= side, 2 * side - 1 - columns, columns)
        np.add.at(matrix, (rows, columns), np.exp(-(offset**2) / (2 * sigma**2)))
    return np.asarray(matrix / matrix.sum(1, keepdims=True))


def binomial(level: Map) -> Map:
    """Smoothed by (1 4 6 4 1) / 16 both ways."""
    wide = pad(level, (2, 2, 2, 2), mode="reflect")
    rows = wide[..., :-4] + wide[..., 4:] + 4 * (wide[..., 1:-3] + wide[..., 3:-1])
    rows += 6 * wide[..., 2:-2]
    both = rows[:, :-4] + rows[:, 4:] + 4 * (rows[:, 1:-3] + rows[:, 3:-1]) + 6 * rows[:, 2:-2]
    return both / 256


def halved(level: Map) -> Float[Tensor, "batch half_height half_width"]:
    return avg_pool2d(level, 2)


def dilated(level: Map, step: int) -> Map:
    """One step of a growing disc: squares and crosses in turn make octagons."""
    if step % 2 == 0:
        return square_max(level)
    return torch.maximum(line_max(level, 1), line_max(level, 2))


def square_max(level: Map) -> Map:
    return line_max(line_max(level, 1), 2)


def line_max(level: Map, axis: int) -> Map:
    """The largest of three neighbours along an axis."""
    side = level.shape[axis]
    larger = level.clone()
    for here, there in ((1, 0), (0, 1)):
        part = larger.narrow(axis, here, side - 1)
        part.copy_(torch.maximum(part, level.narrow(axis, there, side - 1)))
    return larger


def moments_of(
    shares: Float[Tensor, "batch bin"], values: Float[Tensor, " bin"]
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    mean = (shares * values).sum(1)
    return mean, root_of((shares * (values - mean[:, None]) ** 2).sum(1))


def standardised(level: Map) -> Map:
    return (level - widened(mean_of(level))) / widened(spread_of(level) + 1e-4)


def mean_of(level: Map) -> Float[Tensor, " batch"]:
    return level.mean((-1, -2))


def spread_of(level: Map) -> Float[Tensor, " batch"]:
    return root_of(mean_of((level - widened(mean_of(level))) ** 2))


def root_of(values: Tensor) -> Tensor:
    return values.clamp_min(0).sqrt()


def length_of(cosine: Tensor, sine: Tensor) -> Tensor:
    return (cosine**2 + sine**2).sqrt()


def widened(values: Float[Tensor, " batch"]) -> Float[Tensor, "batch 1 1"]:
    return values[:, None, None]
