"""Coarse random maps: smooth noise, and discs packed as in a foam, which glands are cut from."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32

Map = Float32[np.ndarray, "high wide"]


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, int], scale_px: float
) -> Float32[np.ndarray, "high wide"]:
    """Noise with features of `scale_px`, mean about 0, standard deviation about 1."""
    coarse = tuple(max(4, int(side / scale_px) + 4) for side in shape)
    white = rng.standard_normal(coarse).astype(np.float32)
    factor = max(1, round(scale_px))
    size = coarse[1] * factor, coarse[0] * factor
    big = cv2.resize(white, size, interpolation=cv2.INTER_CUBIC)
    cut: np.ndarray = big[factor : factor + shape[0], factor : factor + shape[1]]
    if cut.shape != shape:
        cut = cv2.resize(cut, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(cut) * np.float32(1.3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Foam:
    """Discs on a shaken lattice; all lengths in pixels of the map.

    spread: by how much radii differ, as a share. elongation: the longest axis ratio.
    coverage: share of the sites with a disc. septum: what is left between discs that touch.
    wobble: how far outlines stray; wobble_scale: over which length.
    """

    spacing: float
    radius: float
    spread: float
    elongation: float
    coverage: float
    septum: float
    wobble: float
    wobble_scale: float

    @property
    def reach(self) -> float:
        """How far a disc can matter to its surroundings."""
        longest = self.radius * (1 + 2 * self.spread) * float(np.sqrt(self.elongation))
        return longest + 2.5 * self.wobble + self.septum + 3


def draw_foam(rng: np.random.Generator, shape: tuple[int, int], foam: Foam) -> Map:
    """Signed distance to the nearest outline, negative inside a disc.

    Discs that touch are parted by a straight septum, as the bubbles of a foam are.
    """
    far = np.float32(4 * foam.spacing)  # finite, so that the distance can be smoothed
    nearest, second = np.full(shape, far), np.full(shape, far)
    shift_x, shift_y = (
        foam.wobble * smooth_noise(rng, shape, max(2.0, foam.wobble_scale)) for _ in range(2)
    )
    spacing_y = foam.spacing * 0.866
    draws = rng.uniform(size=(int(shape[0] / spacing_y) + 3, int(shape[1] / foam.spacing) + 3, 6))
    for row, column in np.argwhere(draws[:, :, 0] < foam.coverage).tolist():
        _, u, v, turn, stretch, size = draws[row, column].tolist()
        x = (column - 1 + 0.5 * (row % 2) + 0.55 * (u - 0.5)) * foam.spacing
        y = (row - 1 + 0.55 * (v - 0.5)) * spacing_y
        left, right = _span(x, foam.reach, shape[1])
        top, bottom = _span(y, foam.reach, shape[0])
        if left >= right or top >= bottom:
            continue
        window = slice(top, bottom), slice(left, right)
        radius = foam.radius * (1 + foam.spread * (2 * size - 1))
        ratio = float(np.sqrt(1 + (foam.elongation - 1) * stretch))
        dx = np.arange(left, right, dtype=np.float32)[None, :] - np.float32(x) + shift_x[window]
        dy = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(y) + shift_y[window]
        distance = _to_ellipse(dx, dy, radius, ratio, turn * np.pi)
        near, next_near = nearest[window], second[window]
        np.minimum(next_near, np.maximum(near, distance), out=next_near)
        np.minimum(near, distance, out=near)
    return np.maximum(nearest, (nearest - second + np.float32(foam.septum)) / 2)


def _span(centre: float, reach: float, length: int) -> tuple[int, int]:
    return max(0, int(centre - reach)), min(length, int(centre + reach) + 1)


def _to_ellipse(dx: Map, dy: Map, radius: float, ratio: float, turn: float) -> Map:
    """About the distance to an ellipse of the same area as a disc of `radius`."""
    cos, sin = np.float32(np.cos(turn) / radius), np.float32(np.sin(turn) / radius)
    along, across = (cos * dx + sin * dy) / ratio, (cos * dy - sin * dx) * ratio
    distance: np.ndarray = (cv2.sqrt(along * along + across * across) - 1) * np.float32(radius)
    return distance.astype(np.float32)
