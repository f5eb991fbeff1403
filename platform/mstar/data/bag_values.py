"""The values of a bag: the memory they lie in, what fills it up, and whether all are finite."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int32, Int64

from mstar.errors import ConfigError, FeatureError

NO_ROW = -1  # slide and row of what only fills up

Fill = Literal["mean", "masked", "repeat"]

# the bits of a value without its sign, and from which on it is inf or nan
_MAGNITUDE = {"float16": ("u2", 0x7FFF, 0x7C00), "float32": ("u4", 0x7FFFFFFF, 0x7F800000)}


def make_buffer(
    num_bags: int, size: int, dim: int, *, dtype: str = "float16", pinned: bool = False
) -> Float[np.ndarray, "bag size dim"]:
    """Memory for a batch of bags, to be read into again and again.

    pinned: page-locked, so that `torch.from_numpy(buffer).to("cuda", non_blocking=True)` copies
    while the processor goes on; needs a GPU.
    """
    if not pinned:
        return np.empty((num_bags, size, dim), dtype)
    import torch  # here, since reading bags needs none of it

    if not torch.cuda.is_available():
        raise ConfigError("pinned bags: expected a CUDA device, got none. Use pinned=False.")
    kind = {"float16": torch.float16, "float32": torch.float32}[dtype]
    return torch.empty((num_bags, size, dim), dtype=kind, pin_memory=True).numpy()


def fill_up(
    fill: Fill,
    taken: int,
    features: Float[np.ndarray, "size dim"],
    slide_index: Int32[np.ndarray, " size"],
    row_index: Int64[np.ndarray, " size"],
) -> int:
    """Fill the rows after the first `taken`; returns how many are valid."""
    size = len(features)
    if taken == size:
        return size
    if fill == "repeat":
        again = np.arange(taken, size) % taken
        for array in (features, slide_index, row_index):
            array[taken:] = array[again]
        return size
    # added up in float64: the mean of thousands of float16 rows would lose digits
    mean = fill == "mean"
    features[taken:] = features[:taken].mean(axis=0, dtype=np.float64) if mean else 0
    return taken


def check_finite(
    case_id: str,
    slides: Sequence[str],
    features: Float[np.ndarray, "taken dim"],
    slide_index: Int32[np.ndarray, " size"],
    row_index: Int64[np.ndarray, " size"],
) -> None:
    """Refuse NaN and infinity, named by case, slide and row of its file."""
    bits, unsigned, exponent = _MAGNITUDE[features.dtype.name]
    # all bits of the exponent set: ten times faster than numpy's own test of float16
    magnitude = features.view(bits) & unsigned
    if not features.size or magnitude.max() < exponent:
        return
    row = int(np.argmax((magnitude >= exponent).any(axis=1)))
    raise FeatureError(
        f"case {case_id}, slide {slides[slide_index[row]]}: features, row {row_index[row]}: "
        "expected finite values, got nan or inf. Delete the file and run `mstar embed` again, or "
        "leave the case out."
    )
