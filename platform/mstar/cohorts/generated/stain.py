"""From amounts of haematoxylin and eosin to colours: Beer-Lambert, one table a slide.

Optical densities add and light falls off exponentially. The two amounts are bytes (`UNIT` optical
density a step), so that a slide's whole stain is a table of 256 × 256 colours.
"""

from dataclasses import dataclass
from zlib import crc32

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

UNIT = 2.0 / 255  # optical density of one step
HAEMATOXYLIN = (0.55, 0.72, 0.41)
EOSIN = (0.13, 0.84, 0.52)
GLASS = (243.0, 242.0, 244.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stain:
    """How one slide was stained and scanned: the colour of each amount of the two stains."""

    colours: UInt8[np.ndarray, "haematoxylin eosin 3"]
    glass: tuple[int, int, int]


def draw_stain(rng: np.random.Generator, site: str, site_effect: float) -> Stain:
    """A slide's stain: its laboratory's habits, and a little of its own."""
    habits = np.random.default_rng((crc32(site.encode()), 71))
    vectors = []
    for vector, strength in ((HAEMATOXYLIN, 0.055), (EOSIN, 0.055)):
        hue = habits.normal(0, strength, 3) * site_effect + rng.normal(0, 0.015, 3)
        turned = np.clip(np.array(vector) + hue, 0.05, None)
        amount = np.exp(habits.normal(0, 0.10) * site_effect + rng.normal(0, 0.04))
        vectors.append(amount * turned / np.linalg.norm(turned))
    glass = np.clip(np.array(GLASS) + habits.normal(0, 1.5, 3) * min(1.0, site_effect), 236, 250)
    amounts = np.arange(256) * UNIT
    density = amounts[:, None, None] * vectors[0] + amounts[None, :, None] * vectors[1]
    colours = np.rint(glass * 10.0**-density).astype(np.uint8)
    red, green, blue = (int(value) for value in colours[0, 0])
    return Stain(colours=colours, glass=(red, green, blue))


def colour(
    stain: Stain,
    haematoxylin: Float32[np.ndarray, "height width"],
    eosin: Float32[np.ndarray, "height width"],
) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of two maps of optical density."""
    steps = [np.clip(amount / UNIT, 0, 255) for amount in (eosin, haematoxylin)]
    place = cv2.merge([step.astype(np.int16) for step in steps])  # x: eosin, y: haematoxylin
    empty = np.empty((0, 0), dtype=np.uint16)
    return np.asarray(cv2.remap(stain.colours, place, empty, cv2.INTER_NEAREST), dtype=np.uint8)
