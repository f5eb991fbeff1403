"""Rate files and cluster descriptions: what is refused, and what the built-in table says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mstar.errors import ConfigError
from mstar.planning.built_in import BY_DEVICE, BY_MACHINE
from mstar.planning.cluster import Cluster, Prices, read_cluster
from mstar.planning.rates import (
    DEVICE_RATES,
    RATE_NAMES,
    RateFile,
    built_in,
    left_out,
    rates_for,
    read_rates,
    write_rates,
)

FILE = RateFile(
    format=1,
    mstar_version="0.1.0",
    date="2026-01-31",
    machine="a processor",
    device="cpu",
    device_name="one core",
    encoder="mstar",
    rates={"patch_read_core_s": 0.002, "encoder_patches_per_s": 0.5},
    notes={"patch_read_core_s": "own slides"},
)


def plain(file: RateFile) -> dict[str, Any]:
    return {name: getattr(file, name) for name in RateFile.__dataclass_fields__}


def test_a_rate_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_rates(str(tmp_path / "r.json"), FILE)
    assert read_rates(str(tmp_path / "r.json")) == FILE


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"rates": {"patch_read_s": 0.002}}, "rates.patch_read_s"),
        ({"rates": {"patch_read_core_s": -1}}, "rates.patch_read_core_s"),
        ({"rates": {"patch_read_core_s": "fast"}}, "rates.patch_read_core_s"),
        ({"rates": {"patch_read_core_s": True}}, "rates.patch_read_core_s"),
        ({"rates": [1]}, "rates"),
        ({"format": 2}, "format"),
        ({"format": "1"}, "format"),
        ({"date": "yesterday"}, "date"),
        ({"machine": 7}, "machine"),
        ({"machines": "x"}, "machines"),
    ],
)
def test_a_wrong_rate_file_is_refused_by_field(
    change: dict[str, Any], field: str, tmp_path: Path
) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(plain(FILE) | change))
    with pytest.raises(ConfigError, match=r"expected .* got") as caught:
        read_rates(str(path))
    assert str(path) in str(caught.value)
    assert field in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"format": NaN}'])
def test_what_is_no_rate_file_names_the_way_out(text: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="mstar measure"):
        read_rates(str(path))
    with pytest.raises(ConfigError, match="no such file"):
        read_rates(str(tmp_path / "absent.json"))


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"rates": {}, "notes": {}, "format": 1}))
    with pytest.raises(ConfigError, match=r"field 'mstar_version': expected a value, got none"):
        read_rates(str(path))


@pytest.mark.parametrize("device", sorted(BY_DEVICE))
def test_the_built_in_table_is_whole_and_says_where_each_number_is_from(device: str) -> None:
    rates = built_in(device)
    assert set(rates.sources) == set(RATE_NAMES) == set(BY_MACHINE) | set(BY_DEVICE[device])
    assert set(BY_DEVICE[device]) == set(DEVICE_RATES)
    for name in RATE_NAMES:
        kind, _, source = rates.sources[name].partition(": ")
        assert kind in ("measured", "published", "derived", "assumed")
        assert len(source) > 10, name


def test_no_gpu_rate_claims_to_be_measured() -> None:
    """Nothing ran on one here."""
    for device in set(BY_DEVICE) - {"cpu"}:
        assert all(figure.kind != "measured" for figure in BY_DEVICE[device].values())


def test_measured_rates_replace_the_tables_and_those_of_another_device_do_not() -> None:
    cpu, gpu = rates_for("cpu", FILE), rates_for("h200", FILE)
    assert (cpu.encoder_patches_per_s, cpu.patch_read_core_s) == (0.5, 0.002)
    assert gpu.encoder_patches_per_s == built_in("h200").encoder_patches_per_s
    assert gpu.patch_read_core_s == 0.002
    assert gpu.sources["patch_read_core_s"].startswith("measured: a processor")
    assert "own slides" in gpu.sources["patch_read_core_s"]
    assert left_out("h200", FILE) == ["encoder_patches_per_s"]
    assert left_out("cpu", FILE) == []


def test_an_unknown_gpu_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"h200.*mi300"):
        built_in("mi300")
    with pytest.raises(ConfigError, match="storage_tail"):
        replace(built_in("h200"), storage_tail=0.5)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"num_gpus": 0}, "num_gpus"),
        ({"num_gpus": 2.5}, "num_gpus"),
        ({"spot_share": 2}, "spot_share"),
        ({"gpus": 8}, "did you mean"),
        ({"prices": {"gpu_hour": 3.0}}, "date"),
        ({"prices": {"gpu_hour": 3.0, "date": "2026"}}, "2026"),
        ({"prices": {"gpu_hour": -1.0, "date": "2026-01-31"}}, "gpu_hour"),
        ({"prices": 3}, "prices"),
        ({"gpu": "cpu", "gpus_per_node": 8}, "gpus_per_node"),
        ({"node_network_bytes_per_s": 0}, "node_network_bytes_per_s"),
    ],
)
def test_a_wrong_cluster_is_refused_by_field(
    fields: dict[str, Any], found: str, tmp_path: Path
) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps(fields))
    with pytest.raises(ConfigError) as caught:
        read_cluster(str(path))
    assert found.lower() in str(caught.value).lower()
    assert str(path) in str(caught.value)


def test_a_cluster_file_is_read_with_its_prices(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    prices = {"gpu_hour": 3, "date": "2026-01-31", "gpu_hour_spot": None, "currency": "EUR"}
    path.write_text(json.dumps({"gpu": "a100", "num_gpus": 64, "prices": prices}))
    assert read_cluster(str(path)) == Cluster(
        gpu="a100", num_gpus=64, prices=Prices(gpu_hour=3.0, date="2026-01-31", currency="EUR")
    )
