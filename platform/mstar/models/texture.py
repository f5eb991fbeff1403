"""`texture`: a patch encoder that was never trained, a fixed bank of classic texture measures.

Pixels become optical density and are unmixed into haematoxylin and eosin with fixed stain vectors
(Ruifrok & Johnston 2001). On these, at 256 px and 0.5 µm per pixel, are measured

    colour     moments of both stains, and how they go together
    band       energies, skewness and mutual correlations of difference-of-Gaussian bands, within
               nuclei (Portilla & Simoncelli 2000, without their orientations)
    grain      granulometry: what openings by growing discs take away (Matheron 1975)
    blob       scale-space maxima: how many, how large, how unequal (Lindeberg 1998)
    tensor     coherence of the structure tensor in windows of 16 to 128 µm (Bigün & Granlund 1987)
    steered    the same for second derivatives, which are steerable (Freeman & Adelson 1991), at
               dark blobs: the second circular harmonic of oriented energy

Orientation enters only through magnitudes of circular harmonics and round or square-symmetric
neighbourhoods: turning a patch by a quarter or mirroring it changes nothing but rounding. There is
nothing to train and nothing random; `texture_table` names every measure.
"""

import itertools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from mstar.models.texture_maps import (
    Map,
    Scalars,
    binomial,
    blur_matrix,
    dilated,
    halved,
    length_of,
    mean_of,
    moments_of,
    root_of,
    spread_of,
    square_max,
    standardised,
    unit_vector,
    widened,
)
from mstar.models.texture_table import MEASURES

VERSION = 1  # to be raised whenever the same pixels give other numbers
INPUT_PX = 256
DIM = len(MEASURES)

_WHITE = 0.95  # of unstained glass, on the 0…1 scale
_STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))  # H, E, what is left
_SIGMAS = (1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)  # µm, that is pixels at half resolution
_SURROUND = 6  # index of the sigma that nuclei are compared with
_EOSIN = (0, 2, 4)  # indices of the sigmas of eosin's bands
_CHROMATIN = ("point", "finest", "fine")  # energy of the finest bands: at a blob, and around it
_DISC_RADII = 5
_WINDOWS = (16, 32, 64, 128)  # µm
_LARGEST = 8.0  # of a scaled measure; blank and broken patches end here
_TINY = 1e-6


class TextureEncoder(nn.Module):
    """Patches in, texture measures out. It has buffers and no parameters."""

    version: Tensor
    unmix: Float[Tensor, "2 3"]
    blurs: Float[Tensor, "sigma side side"]
    centre: Float[Tensor, " measure"]
    scale: Float[Tensor, " measure"]

    def __init__(self) -> None:
        """Computes the filters; the same bits on every machine."""
        super().__init__()
        unmix = np.linalg.inv(np.array([unit_vector(stain) for stain in _STAINS])).T[:2]
        blurs = [blur_matrix(INPUT_PX // 2, sigma) for sigma in _SIGMAS]
        constants = {
            "unmix": unmix.round(6).tolist(),
            "blurs": np.stack(blurs).round(7).tolist(),
            "centre": [centre for _, centre, _ in MEASURES],
            "scale": [scale for _, _, scale in MEASURES],
        }
        self.register_buffer("version", torch.tensor(VERSION))
        for name, values in constants.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch measure"]:
        """The measures of patches with values from 0 to 1, one at a time: fits into a CPU's cache.

        Always in float32, whatever the autocast around it.
        """
        at_once = 1 if images.device.type == "cpu" else len(images)
        with _in_float32(images.device.type):
            raw = [
                self._scaled(self.measure(part)) for part in torch.split(images.float(), at_once)
            ]
        return torch.cat(raw)

    def measure(self, images: Float[Tensor, "batch 3 height width"]) -> Scalars:
        """Every measure by its name, as it is before centring and scaling."""
        density = -torch.log10((images / _WHITE).clamp(1 / 255, 1))
        haematoxylin = torch.einsum("c,bchw->bhw", self.unmix[0], density)
        fine, h = self._fine_and_half(haematoxylin)
        density = avg_pool2d(density, 2)
        eosin = torch.einsum("c,bchw->bhw", self.unmix[1], density)
        levels = [h, *self._blurred(h)]
        bands = [a - b for a, b in itertools.pairwise(levels)]
        nuclei = torch.sigmoid(30 * (levels[2] - levels[1 + _SURROUND]))
        found = _colour(density, h, eosin)
        found |= self._eosin(eosin)
        found |= _bands(h, fine, bands, nuclei)
        found |= _grain((h - levels[1 + _SURROUND]).clamp_min(0))
        chromatin = [halved(band * band).sqrt() for band in fine]
        around = (self.blurs[0] @ torch.stack(chromatin, 1) @ self.blurs[0].T).unbind(1)
        found |= _blobs(bands, [chromatin[0], *around], found["nuclei.density"])
        for name, level in (("tensor1", levels[1]), ("tensor2", levels[3])):
            found |= _tensor(name, level)
        for name, level in (("steered2", levels[3]), ("steered3", levels[4])):
            found |= _steered(name, level)
        return found

    def _fine_and_half(self, stain: Map) -> tuple[list[Map], Map]:
        """The two finest bands at full resolution, and the rest at half."""
        once = binomial(stain)
        twice = binomial(once)
        return [stain - once, once - twice], halved(twice)

    def _blurred(self, level: Map, sigmas: tuple[int, ...] | None = None) -> list[Map]:
        blurs = self.blurs if sigmas is None else self.blurs[list(sigmas)]
        return list((blurs @ level[:, None] @ blurs.transpose(1, 2)).unbind(1))

    def _eosin(self, eosin: Map) -> Scalars:
        levels = [eosin, *self._blurred(eosin, _EOSIN)]
        total = mean_of(eosin.clamp_min(0)) + 0.01
        return {
            f"eosin.band{i}": spread_of(a - b) / total
            for i, (a, b) in enumerate(itertools.pairwise(levels))
        }

    def _scaled(self, found: Scalars) -> Float[Tensor, "batch measure"]:
        raw = torch.stack([found[name] for name, _, _ in MEASURES], 1)
        scaled: Tensor = ((raw - self.centre) / self.scale).clamp(-_LARGEST, _LARGEST)
        return scaled


def _colour(density: Float[Tensor, "batch 3 height width"], h: Map, e: Map) -> Scalars:
    """Moments of the stains."""
    found = {"tissue": mean_of(torch.sigmoid(50 * (density.mean(1) - 0.08)))}
    for number, name in enumerate(("red", "green", "blue")):
        found[f"density.{name}"] = mean_of(density[:, number])
    for name, stain in (("haematoxylin", h), ("eosin", e)):
        found[f"{name}.mean"], found[f"{name}.spread"] = mean_of(stain), spread_of(stain)
        found[f"{name}.skew"] = mean_of(standardised(stain) ** 3)
    found["stains.correlation"] = mean_of(standardised(h) * standardised(e))
    return found


def _bands(h: Map, fine: list[Map], bands: list[Map], nuclei: Map) -> Scalars:
    """Energy, skewness and correlations of bands, weighted by where nuclei are."""
    area = mean_of(nuclei) + 1e-4
    density = (mean_of(h * nuclei) / area).clamp_min(0)
    spread = root_of(mean_of((h - widened(density)) ** 2 * nuclei) / area)
    found = {"nuclei.area": area, "nuclei.density": density}
    found["nuclei.spread"] = spread / (density + 0.02)
    # Halving before the product with what is constant in two by two pixels changes no mean.
    every = [*(halved(band) for band in fine), *bands[1:6]]
    squares = [halved(band * band) for band in fine] + [band * band for band in bands[1:6]]
    sizes = [root_of(mean_of(square * nuclei) / area) + 1e-4 for square in squares]
    for i, size in enumerate(sizes):
        found[f"band{i}.energy"] = (size / (density + 0.02)).log()
    for i, band in enumerate(fine):
        found[f"band{i}.skew"] = mean_of(halved(band**3) * nuclei) / area / sizes[i] ** 3
    pairs = [(a, b) for a in range(len(fine)) for b in range(a + 1, len(every))]
    for i, j in pairs:
        product = every[i] * every[j] if j > 1 else halved(fine[0] * fine[1])
        found[f"bands{i}{j}.correlation"] = mean_of(product * nuclei) / area / (sizes[i] * sizes[j])
    return found


def _grain(stain: Map) -> Scalars:
    """The share of the stain that openings by discs of growing radius take away (in µm)."""
    total = mean_of(stain) + 1e-3
    left, eroded, found, shares = total, stain, {}, []
    for radius in range(1, _DISC_RADII + 1):
        eroded = -dilated(-eroded, radius)
        opened = eroded
        for step in range(radius, 0, -1):
            opened = dilated(opened, step)
        mean = mean_of(opened)
        shares.append((left - mean) / total)
        found[f"grain.{radius}um"], left = shares[-1], mean
    shares.append(left / total)
    found["grain.larger"] = shares[-1]
    logs = torch.arange(1, len(shares) + 1, device=stain.device).log()
    size, spread = moments_of(torch.stack(shares, 1), logs)
    return found | {"grain.size": size, "grain.spread": spread}


def _blobs(bands: list[Map], chromatin: list[Map], density: Float[Tensor, " batch"]) -> Scalars:
    """Maxima over place and scale: number, strength, size, inner structure, and how they vary."""
    responses = torch.stack(bands[1:6], 1)
    best, sigma = responses.max(1)
    peaks = (best >= square_max(square_max(best))) & (best > 0.03 * widened(density))
    weight = best * peaks
    total = mean_of(weight) + _TINY
    here = [mean_of(weight * (sigma == i)) / total for i in range(responses.shape[1])]
    size, spread = moments_of(
        torch.stack(here, 1), torch.arange(len(here), device=best.device).float()
    )
    count = mean_of(peaks.float()) + 1e-5
    found = {f"blob.share{i}": share for i, share in enumerate(here)}
    found |= {"blob.number": (100 * count).log(), "blob.size": size, "blob.spread": spread}
    found["blob.strength"] = total / count / (density + 0.02)
    # At half the blob's own size, so that large and small blobs are asked the same.
    inner = torch.stack(bands[:5], 1).gather(1, (sigma - 1).clamp_min(0)[:, None])[:, 0]
    for name, part in zip(("inner", *_CHROMATIN), (inner, *chromatin), strict=True):
        middle = mean_of(part * peaks) / total
        found[f"blob.{name}"] = middle
        away = (part - widened(middle) * best) ** 2 * peaks
        found[f"blob.{name}_spread"] = root_of(mean_of(away) / (mean_of(weight * best) + _TINY))
    return found


def _tensor(name: str, level: Map) -> Scalars:
    """Coherence of the gradient's directions, as double angles, in growing windows."""
    along = pad(level[..., 2:] - level[..., :-2], (1, 1, 0, 0))
    down = pad(level[..., 2:, :] - level[..., :-2, :], (0, 0, 1, 1))
    cosine, sine, energy = along**2 - down**2, 2 * along * down, along**2 + down**2
    fourth = length_of(
        mean_of((cosine**2 - sine**2) / (energy + _TINY)),
        mean_of(2 * cosine * sine / (energy + _TINY)),
    )
    found = {f"{name}.fourth": fourth / (mean_of(energy) + 1e-9)}
    return found | _coherence(name, cosine, sine, energy)


def _steered(name: str, level: Map) -> Scalars:
    """The direction of dark blobs by second derivatives, and its coherence in windows."""
    bent_x = pad(level[..., 2:] + level[..., :-2] - 2 * level[..., 1:-1], (1, 1, 0, 0))
    bent_y = pad(level[..., 2:, :] + level[..., :-2, :] - 2 * level[..., 1:-1, :], (0, 0, 1, 1))
    down = pad(level[..., 2:, :] - level[..., :-2, :], (0, 0, 1, 1))
    mixed = pad(down[..., 2:] - down[..., :-2], (1, 1, 0, 0)) / 4
    cosine, sine, round_ = bent_x - bent_y, 2 * mixed, (-bent_x - bent_y).clamp_min(0)
    oriented = length_of(cosine, sine)
    gate = round_ * (round_ > oriented / 2)
    found = {f"{name}.length": mean_of(oriented * gate) / (mean_of(round_ * gate) + 1e-9)}
    return found | _coherence(name, cosine * gate, sine * gate, oriented * gate)


def _coherence(name: str, cosine: Map, sine: Map, energy: Map) -> Scalars:
    """0: all directions alike, 1: one direction; mean over windows by energy, and its spread."""
    found: Scalars = {}
    size = 1
    total = mean_of(energy) + 1e-9
    for window in _WINDOWS:
        step, size = window // size, window
        cosine, sine, energy = (avg_pool2d(part, step) for part in (cosine, sine, energy))
        coherence = length_of(cosine, sine) / (energy + 1e-3 * widened(total))
        share = energy / widened(total)
        mean = mean_of(coherence * share)
        found[f"{name}.coherence{window}"] = mean
        if window < _WINDOWS[-1]:
            spread = root_of(mean_of((coherence - widened(mean)) ** 2 * share))
            found[f"{name}.coherence_spread{window}"] = spread
    return found


def _in_float32(device_type: str) -> AbstractContextManager[Any]:
    """No autocast within; the device without memory, for shapes, knows none."""
    if device_type == "meta":
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
