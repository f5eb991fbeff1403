"""Values → token ids, as scBERT-style gene encoders take them.

Ids 0 … num_bins are bins, num_bins + 1 is the mask. `floor_clip` is scBERT's rule: the whole part,
clipped; with natural logarithms of bulk RSEM every gene above e^5 - 1 = 147 lands in the top bin.
`quantile` gives zero its own id and splits what is expressed into equally full bins.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int64

from mstar.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class BinningConfig:
    """How expression values become token ids."""

    method: Literal["floor_clip", "quantile"] = "floor_clip"
    """floor_clip: whole part, clipped at num_bins. quantile: by edges fitted on given rows."""
    num_bins: int = 5
    """Highest bin; ids 0 … num_bins are bins, num_bins + 1 is the mask. 5 is scBERT's (7 ids)."""
    bin_width: float = 1.0
    """Width of a floor_clip bin on the stored scale; ln 2 bins natural logarithms like base 2."""
    edges: tuple[float, ...] = ()
    """Lower edges of the bins 2 … num_bins of quantile, as `fit_edges` found them."""

    def __post_init__(self) -> None:
        """Refuses what cannot be binned with."""
        if self.num_bins < 1:
            raise ConfigError(f"num_bins: expected 1 or more, got {self.num_bins}.")
        if not self.bin_width > 0:
            raise ConfigError(f"bin_width: expected more than 0, got {self.bin_width}.")
        if self.edges and (
            len(self.edges) != self.num_bins - 1 or list(self.edges) != sorted(self.edges)
        ):
            raise ConfigError(
                f"edges: expected {self.num_bins - 1} ascending numbers, got {self.edges}."
            )

    @property
    def mask_id(self) -> int:
        """The id of a masked gene."""
        return self.num_bins + 1

    @property
    def num_ids(self) -> int:
        """How many rows the table of expression embeddings needs."""
        return self.num_bins + 2


def fit_edges(config: BinningConfig, values: Float32[np.ndarray, "case gene"]) -> BinningConfig:
    """The config with quantile edges of the expressed values of some rows (training cases).

    Raises:
        ConfigError: nothing is expressed in these rows.
    """
    if config.method != "quantile":
        return config
    expressed = values[values > 0]
    if not len(expressed):
        raise ConfigError("quantile bins: expected rows with expression, got zeros only.")
    shares = np.arange(1, config.num_bins) / config.num_bins
    edges = np.quantile(expressed.astype(np.float64), shares) if len(shares) else np.zeros(0)
    return replace(config, edges=tuple(float(edge) for edge in edges))


def bin_expression(
    values: Float32[np.ndarray, "*case gene"], config: BinningConfig
) -> Int64[np.ndarray, "*case gene"]:
    """Token ids of log1p'd values.

    Raises:
        ConfigError: quantile edges have not been fitted.
    """
    assert np.isfinite(values).all()
    assert (values >= 0).all()
    if config.method == "floor_clip":
        whole = np.floor(values / np.float32(config.bin_width))
        return np.minimum(whole, config.num_bins).astype(np.int64)
    if len(config.edges) != config.num_bins - 1:
        raise ConfigError("quantile bins have no edges. Fit them on training rows: fit_edges.")
    ids = 1 + np.searchsorted(np.array(config.edges), values, side="right")
    return np.where(values > 0, ids, 0).astype(np.int64)
