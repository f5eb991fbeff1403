"""Endless noise: square textures that repeat, cut out at any place of a slide.

They are the same for every slide; a slide's seed only decides where they are cut. So any block of
a slide can be painted on its own, and costs a slice instead of new random numbers.
"""

from functools import cache

import cv2
import numpy as np
from jaxtyping import Float32

PERIOD_PX = 1024
BLOCK_PX = 544  # the largest cut: a painted block with its margin


def cut(
    texture: Float32[np.ndarray, "high wide"], x: int, y: int, width: int, height: int
) -> Float32[np.ndarray, "height width"]:
    """The texture at (x, y) of an endless plane, as a view."""
    assert max(width, height) <= BLOCK_PX
    left, top = x % PERIOD_PX, y % PERIOD_PX
    return texture[top : top + height, left : left + width]


@cache
def grain() -> Float32[np.ndarray, "high wide"]:
    """Fine mottle, the granules of cytoplasm; mean 0, standard deviation 1."""
    wrapped = np.pad(_white(1, PERIOD_PX), 8, mode="wrap")
    fine, coarse = (cv2.GaussianBlur(wrapped, (0, 0), sigma)[8:-8, 8:-8] for sigma in (0.8, 2.0))
    return _endless(0.6 * _standard(fine) + 0.8 * _standard(coarse))


@cache
def mottle() -> Float32[np.ndarray, "high wide"]:
    """Unevenness over the size of a few nuclei; mean 0, standard deviation 1."""
    return _endless(0.7 * _noise(3, 16) + 0.7 * _noise(4, 64))


@cache
def fibres() -> Float32[np.ndarray, "high wide"]:
    """Wavy strands as of collagen, without a direction of their own; mean 0, deviation 1."""
    row, column = np.mgrid[0:PERIOD_PX, 0:PERIOD_PX].astype(np.float32)
    white = _white(5, PERIOD_PX)
    sheets = []
    for turn in range(2):  # at right angles, each bent by half a turn and more
        flat = np.pad(np.rot90(white, 2 * turn), 64, mode="wrap")
        for length in (33, 19):
            flat = cv2.blur(flat, (length, 1))
        flat = cv2.GaussianBlur(flat, (1, 5), 1.0)[64:-64, 64:-64]
        bend = [amount * _noise(6 + turn + 2 * i, 128) for i, amount in enumerate((40, 55))]
        bent = cv2.remap(
            flat, column + bend[0], row + bend[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
        )
        sheets.append(_standard(np.rot90(np.asarray(bent), turn)))
    share = np.clip(0.5 + _noise(10, 64), 0, 1)
    coarse = _noise(11, 8)
    return _endless(share * sheets[0] + (1 - share) * sheets[1] + 0.45 * coarse)


def _white(seed: int, side: int) -> Float32[np.ndarray, "side side"]:
    return np.random.default_rng((20, seed)).standard_normal((side, side), dtype=np.float32)


def _noise(seed: int, scale_px: int) -> Float32[np.ndarray, "high wide"]:
    """Repeating noise of one scale, a divisor of the period; mean 0, standard deviation 1."""
    coarse = np.pad(_white(seed, PERIOD_PX // scale_px), 3, mode="wrap")
    size = coarse.shape[1] * scale_px
    big = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    inner = slice(3 * scale_px, 3 * scale_px + PERIOD_PX)
    return _standard(np.asarray(big[inner, inner]))


def _standard(field: np.ndarray) -> Float32[np.ndarray, "high wide"]:
    result: np.ndarray = ((field - field.mean()) / field.std()).astype(np.float32)
    return result


def _endless(tile: np.ndarray) -> Float32[np.ndarray, "high wide"]:
    """The tile with its beginning repeated, so that every cut is one slice."""
    return np.pad(np.clip(_standard(tile), -3, 3), ((0, BLOCK_PX), (0, BLOCK_PX)), mode="wrap")
