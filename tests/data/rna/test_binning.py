"""Token ids: scBERT's rule, and bins that are equally full."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mstar.config import to_dict
from mstar.data.rna.binning import BinningConfig, bin_expression, fit_edges
from mstar.errors import ConfigError

VALUES = hnp.arrays(np.float32, (3, 7), elements=st.floats(0, 20, width=32))


@settings(max_examples=30, deadline=None)
@given(values=VALUES, num_bins=st.integers(1, 9))
def test_floor_clip_is_the_whole_part_clipped(values: np.ndarray, num_bins: int) -> None:
    config = BinningConfig(num_bins=num_bins)
    found = bin_expression(values, config)
    expected = [[min(int(v), num_bins) for v in row] for row in values.tolist()]
    assert found.tolist() == expected
    assert found.dtype == np.int64


def test_the_default_has_scberts_seven_ids() -> None:
    config = BinningConfig()
    assert (config.num_ids, config.mask_id) == (7, 6)
    values = np.log1p(np.array([0, 1.8, 147.0, 148.0, 1e6], dtype=np.float32))
    assert bin_expression(values, config).tolist() == [0, 1, 4, 5, 5]


def test_a_bin_width_of_ln_2_bins_like_base_2() -> None:
    linear = np.array([0.0, 0.9, 1.1, 6.9, 7.1, 40.0], dtype=np.float32)
    config = BinningConfig(bin_width=float(np.log(2)))
    found = bin_expression(np.log1p(linear), config)
    assert found.tolist() == np.minimum(np.floor(np.log2(linear + 1)), 5).tolist()


@settings(max_examples=30, deadline=None)
@given(values=VALUES, num_bins=st.integers(1, 9))
def test_quantile_bins_grow_with_the_value_and_keep_zero_apart(
    values: np.ndarray, num_bins: int
) -> None:
    values[0, 0] = 1.0
    config = fit_edges(BinningConfig(method="quantile", num_bins=num_bins), values)
    found = bin_expression(values, config)
    assert ((found == 0) == (values == 0)).all()
    assert found.max() <= num_bins
    order = np.argsort(values, axis=None, kind="stable")
    assert (np.diff(found.ravel()[order]) >= 0).all()


def test_quantile_bins_are_equally_full_on_the_rows_they_were_fitted_on() -> None:
    values = np.random.default_rng(0).gamma(2, 2, (50, 200)).astype(np.float32)
    values[:, :40] = 0
    config = fit_edges(BinningConfig(method="quantile"), values)
    counts = np.bincount(bin_expression(values, config).ravel())
    assert counts[0] == 2000
    assert np.ptp(counts[1:]) <= 2
    restored = BinningConfig(**to_dict(config) | {"edges": tuple(config.edges)})
    assert restored == config
    other = bin_expression(values[:5] * 2, config)
    assert np.bincount(other.ravel())[5] > np.bincount(other.ravel())[1]


def test_edges_that_do_not_fit_are_refused() -> None:
    zeros = np.zeros((2, 3), dtype=np.float32)
    quantile = BinningConfig(method="quantile")
    with pytest.raises(ConfigError, match="got zeros only"):
        fit_edges(quantile, zeros)
    with pytest.raises(ConfigError, match="Fit them on training rows"):
        bin_expression(zeros, quantile)
    with pytest.raises(ConfigError, match="expected 4 ascending numbers"):
        BinningConfig(method="quantile", edges=(1.0, 2.0))
    with pytest.raises(ConfigError, match="num_bins"):
        BinningConfig(num_bins=0)
    with pytest.raises(ConfigError, match="bin_width"):
        BinningConfig(bin_width=0.0)
    assert fit_edges(BinningConfig(), zeros) == BinningConfig()
