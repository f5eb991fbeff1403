"""`mstar measure`: a small file of true rates, which `mstar plan` takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mstar.cli import measure_models
from mstar.cli.main import main
from mstar.cli.measure import MeasureConfig, device_of, run
from mstar.cli.measure_clock import calls_per_s, core_seconds
from mstar.errors import ConfigError
from mstar.planning.rates import read_rates
from mstar.training.exit_codes import ExitCode


@pytest.mark.slow
def test_what_can_be_measured_here_in_a_moment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tiny encoder on one core; the file is read back, and a plan made of it."""
    out = tmp_path / "rates.json"
    flags = ["--out", str(out), "--seconds", "0.05", "--encoder", "vit_micro", "--device", "cpu"]
    assert main(["measure", *flags]) == ExitCode.COMPLETE
    found = read_rates(str(out))
    assert (
        set(found.rates)
        == set(found.notes)
        == {
            "patch_read_core_s",
            "shard_image_core_s",
            "jpeg_decode_core_s",
            "encoder_patches_per_s",
            "stage2_patches_per_s",
            "target_patches_per_s",
            "head_trials_per_min",
        }
    )
    assert (found.device, found.encoder) == ("cpu", "vit_micro")
    # a step is at least a forward and a backward pass, and storing is more than decoding
    assert found.rates["stage2_patches_per_s"] < found.rates["encoder_patches_per_s"]
    assert found.rates["jpeg_decode_core_s"] < found.rates["shard_image_core_s"]
    capsys.readouterr()
    plan = ["plan", "--preset", "pilot", "--gpu", "cpu", "--rates", str(out), "--json"]
    assert main(plan) == ExitCode.COMPLETE
    planned = json.loads(capsys.readouterr().out)
    assert planned["rates"]["patch_read_core_s"] == found.rates["patch_read_core_s"]
    assert "vit_micro" in planned["sources"]["encoder_patches_per_s"]


def test_own_slides_tell_what_opening_takes(
    tmp_path: Path, slide_factory: Callable[..., Path]
) -> None:
    path = slide_factory(width=1536, height=1536, full=True)
    out = tmp_path / "rates.json"
    run(MeasureConfig(out=str(out), seconds=0.05, slides=str(path), only=("read",)))
    found = read_rates(str(out))
    assert 0 < found.rates["slide_open_core_s"] < 30
    assert "own slides" in found.notes["patch_read_core_s"]
    empty = slide_factory(width=600, height=600, tissue=False)
    with pytest.raises(ConfigError, match="tissue"):
        run(MeasureConfig(out=str(out), seconds=0.05, slides=str(empty), only=("read",)))


def test_rates_of_a_core_are_cpu_time() -> None:
    """Waiting costs nothing, computing does: what others do on the machine does not count."""
    import time

    waiting = core_seconds(lambda _: time.sleep(0.01), [0], 0.1)
    assert waiting < 0.005
    assert calls_per_s(lambda: time.sleep(0.01), 0.1) < 105
    assert calls_per_s(lambda: time.sleep(0.01), 0.1, of_core=True) > 200


def test_object_storage_is_probed_and_left_clean(s3_server: str, tmp_path: Path) -> None:
    from mstar.storage.objects import list_files
    from support.s3 import make_bucket

    bucket = make_bucket("measured")
    out = tmp_path / "rates.json"
    run(MeasureConfig(out=str(out), seconds=0.1, storage=f"{bucket}/x", only=("storage",)))
    found = read_rates(str(out)).rates
    assert set(found) == {"storage_latency_s", "storage_tail", "storage_stream_bytes_per_s"}
    assert found["storage_tail"] >= 1
    assert list(list_files(bucket)) == []


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"seconds": 0.0}, "--seconds"),
        ({"storage": "/tmp"}, "s3://"),
        ({"device": "tpu"}, "--device"),
        ({"only": ("reading",)}, "read, encode"),
        ({"only": ("storage",)}, "--storage"),
    ],
)
def test_a_wrong_call_says_the_way_out(fields: dict[str, object], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        MeasureConfig(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("Other One", "otherone"),
    ],
)
def test_devices_are_called_as_the_plan_calls_them(
    name: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_models, "is_cuda", lambda device: True)
    monkeypatch.setattr(measure_models, "gpu_name", lambda: name)
    assert device_of(MeasureConfig()) == (key, name)
