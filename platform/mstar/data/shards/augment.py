"""Augmentation of decoded patches: flips, quarter turns, stain jitter. Off as in the paper.

What is drawn follows from (seed, epoch, row) alone: neither the order, the number of workers nor a
restart changes it.
"""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8, UInt64

from mstar.errors import ConfigError

# Optical densities of haematoxylin and eosin in R, G, B (Ruifrok and Johnston 2001).
_HAEMATOXYLIN, _EOSIN = (0.65, 0.70, 0.29), (0.07, 0.99, 0.11)
_DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)
_STEPS = np.uint64(0x9E3779B97F4A7C15) * np.arange(1, 4, dtype=np.uint64)  # one a word; wraps


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig:
    """What is done to every patch before it is trained; the paper names none of it."""

    flips: bool = False
    """Whether patches are mirrored, left to right and top to bottom, each half of the time."""

    rotations: bool = False
    """Whether patches are turned by 0, 90, 180 or 270 degrees."""

    stain_jitter: float = 0.0
    """How much the amounts of haematoxylin and of eosin change: each by a factor in 1 ± this.
    0.1 is mild. White stays white. About 5 ms of a core per patch of 256 px."""

    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        """Refuses a jitter that would turn a stain off."""
        if not 0 <= self.stain_jitter < 1:
            raise ConfigError(
                f"stain_jitter: expected 0 to 1 (without 1), got {self.stain_jitter}. Use 0.1."
            )

    @property
    def is_on(self) -> bool:
        """Whether anything is done at all."""
        return self.flips or self.rotations or self.stain_jitter > 0


def row_words(
    config: AugmentConfig, epoch: int, rows: Int64[np.ndarray, " row"]
) -> UInt64[np.ndarray, "row word"]:
    """Three random words for each row."""
    key = hashlib.sha256(json.dumps(["augment", config.seed, epoch]).encode()).digest()[:8]
    first = _mix(rows.astype(np.uint64) ^ np.uint64(int.from_bytes(key, "little")))
    return _mix(first[:, None] + _STEPS)


def augment(
    pixels: UInt8[np.ndarray, "px px 3"], words: UInt64[np.ndarray, " word"], config: AugmentConfig
) -> None:
    """Change a patch in place, as its words say."""
    bits = int(words[0])
    changed = pixels
    if config.flips:
        changed = changed[:: -1 if bits & 1 else 1, :: -1 if bits & 2 else 1]
    if config.rotations:
        changed = np.rot90(changed, bits >> 2 & 3)
    if config.stain_jitter:
        drawn = words[1:].astype(np.float64) / 2.0**64 * 2 - 1
        changed = _restained(changed, 1 + config.stain_jitter * drawn)
    if changed is not pixels:
        pixels[...] = changed.copy()  # a view of itself may be among its sources


def _restained(
    pixels: UInt8[np.ndarray, "px px 3"], factors: Float64[np.ndarray, " 2"]
) -> UInt8[np.ndarray, "px px 3"]:
    """The patch with its two stains stronger or weaker by these factors."""
    stains = np.array([_HAEMATOXYLIN, _EOSIN, np.cross(_HAEMATOXYLIN, _EOSIN)])
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    scaled = np.append(factors, 1.0)[:, None] * stains
    change: Float32[np.ndarray, "3 3"] = (np.linalg.inv(stains) @ scaled).astype(np.float32)
    light = np.exp(-(_DENSITY[pixels] @ change)) * 256 - 1
    restained: UInt8[np.ndarray, "px px 3"] = np.clip(np.rint(light), 0, 255).astype(np.uint8)
    return restained


def _mix(words: UInt64[np.ndarray, "*any"]) -> UInt64[np.ndarray, "*any"]:
    """Words that look independent even for consecutive inputs (the finaliser of SplitMix64)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: UInt64[np.ndarray, "*any"] = words ^ (words >> np.uint64(31))
    return mixed
