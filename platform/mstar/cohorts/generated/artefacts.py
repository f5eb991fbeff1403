"""What is on a slide besides tissue: strokes of a felt pen."""

import cv2
import numpy as np
from jaxtyping import Float32

INKS = ((40, 60, 170), (30, 120, 80), (50, 50, 60), (170, 40, 60))  # blue, green, black, red


def draw_pen(
    rng: np.random.Generator, shape: tuple[int, int], um: float
) -> tuple[Float32[np.ndarray, "high wide"], tuple[int, int, int]]:
    """One to three bent strokes near the rim of a slide: how much ink, 0 to 1, and its colour."""
    ink = np.zeros(shape, np.float32)
    size = np.array([shape[1], shape[0]], dtype=float)
    for _ in range(int(rng.integers(1, 4))):
        corner = rng.uniform(0.06, 0.2, 2)
        corner = np.where(rng.uniform(size=2) < 0.5, corner, 1 - corner)
        steps = np.linspace(0, 1, 20)[:, None]
        turn, bend = rng.uniform(0, 2 * np.pi), rng.normal(0, 2.0)
        way = np.hstack([np.cos(turn + bend * steps), np.sin(turn + bend * steps)])
        points = (corner + rng.uniform(0.12, 0.25) * steps * way) * size
        thick = max(2, round(rng.uniform(25, 45) / um))
        path = [np.rint(points).astype(np.int32)]
        stroke = cv2.polylines(np.zeros(shape, np.float32), path, False, 1.0, thick, cv2.LINE_AA)
        ink = np.maximum(ink, np.asarray(stroke) * np.float32(rng.uniform(0.7, 0.92)))
    red, green, blue = INKS[int(rng.integers(len(INKS)))]
    return np.asarray(cv2.GaussianBlur(ink, (0, 0), 0.8)), (red, green, blue)
