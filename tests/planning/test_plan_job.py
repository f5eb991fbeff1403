"""`mstar plan` as a caller meets it: the screen, JSON, manifests, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mstar.cli.main import main
from mstar.errors import ConfigError
from mstar.planning.config import PlanConfig, cluster_of, read_inputs, workload_of
from mstar.planning.plan import make_plan
from mstar.planning.report import bytes_text, count_text, plan_screen
from mstar.planning.stages import STAGES
from mstar.training.exit_codes import ExitCode

PAPER = ["plan", "--preset", "paper", "--num-gpus", "8"]


def screen(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert main([*PAPER, *flags]) == ExitCode.COMPLETE
    return capsys.readouterr().out


def test_the_paper_s_run_on_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    text = screen(capsys, "--simulate")
    assert "116,000,000 patches" in text
    for name in STAGES:
        assert f"\n{name}" in text
    assert "2.9 TB" in text  # shards, as docs/stage2.md has them
    assert "47.4" in text  # GPU hours of stage 2, likewise
    assert "no prices were given" in text
    assert "agree within 20%" in text
    assert "assumed: " in text
    assert len(text.splitlines()) < 45
    assert max(map(len, text.splitlines())) < 180


def test_prices_are_printed_with_their_date(capsys: pytest.CaptureFixture[str]) -> None:
    text = screen(capsys, "--price-gpu-hour", "3", "--price-date", "2026-01-31")
    assert "USD, at the prices that you gave for 2026-01-31" in text
    assert "on demand 142" in text  # docs/stage2.md: $142
    assert "spot nodes" not in text
    text = screen(
        capsys,
        *("--price-gpu-hour", "3", "--price-gpu-hour-spot", "1", "--spot-share", "1"),
        *("--price-date", "2026-01-31"),
    )
    assert "with spot nodes" in text


def test_json_has_everything_with_its_unit(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(screen(capsys, "--json", "--stages", "embed", "--simulate"))
    (embed,) = found["stages"]
    assert embed["read_bytes"] == pytest.approx(found["workload"]["slide_bytes"])
    assert embed["gpu_hours"] == pytest.approx(8 * embed["wall_hours"])
    assert embed["cost"] is None
    assert found["simulated"]["done_patches"] == pytest.approx(116_000_000, rel=1e-3)
    assert set(found["rates"]) == set(found["sources"])


def test_a_hopper_gpu_wants_half_a_gigabyte_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    """Of slides from object storage, so that it is never held up."""
    assert "it would take 0.44 if nothing held it up" in screen(capsys, "--stages", "embed")


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ([], "--slides, --preset and --num-slides"),
        (["--preset", "paper", "--num-slides", "3"], "one of"),
        (["--preset", "papers"], "hospital"),
        (["--preset", "paper", "--stages", "stage3"], "stage2"),
        (["--preset", "paper", "--gpu", "mi300"], "a100"),
        (["--preset", "paper", "--price-gpu-hour", "3"], "--price-date"),
        (["--preset", "paper", "--price-gpu-hour", "3", "--price-date", "May"], "2026-01-31"),
        (["--preset", "paper", "--rates", "none.json"], "mstar measure"),
        (["--preset", "paper", "--cluster", "none.json"], "plan.md"),
        (["--preset", "paper", "--spot-share", "1.5"], "spot_share"),
        (["--preset", "paper", "--curve", "x.jpg"], ".png"),
        (["--preset", "paper", "--size-spread", "9"], "size_spread"),
        (["--preset", "paper", "--stage2-epochs", "0"], "stage2_epochs"),
        (["--slides", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_a_wrong_call_says_the_way_out(
    flags: list[str], found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *flags]) == ExitCode.USAGE
    assert found in capsys.readouterr().err


def test_flags_override_the_cluster_s_file(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text('{"gpu": "a100", "num_gpus": 64, "spot_share": 0.5}')
    config = PlanConfig(preset="paper", cluster=str(path))
    assert cluster_of(config).num_gpus == 64
    config = replace(config, on=replace(config.on, num_gpus=16, spot_share=0.0))
    cluster = cluster_of(config)
    assert (cluster.gpu, cluster.num_gpus, cluster.spot_share) == ("a100", 16, 0.0)
    small = cluster_of(replace(config, on=replace(config.on, num_gpus=2)))
    assert (small.gpus_per_node, small.cpu_cores_per_node) == (2, 24)  # a quarter of a node


def test_a_folder_of_slides_is_counted_by_its_files(
    tmp_path: Path, slide_factory: Callable[..., Path]
) -> None:
    sizes = [3_000_000, 700_000, 11]
    for at, size in enumerate(sizes):
        (tmp_path / f"{at}.svs").write_bytes(b"\0" * size)
    work = workload_of(PlanConfig(slides=str(tmp_path), num_cases=2))
    assert (work.num_slides, work.num_cases, work.slide_bytes) == (3, 2, sum(sizes))
    assert work.num_patches == pytest.approx(sum(sizes) / 111_000, abs=2)


def test_a_manifest_counts_cases_and_takes_what_is_stated(tmp_path: Path) -> None:
    manifest = tmp_path / "slides.csv"
    rows = [f"s3://b/{at}.svs,s{at},c{at // 3}" for at in range(9)]
    manifest.write_text("\n".join(["path,slide_id,case_id", *rows]))
    work = workload_of(PlanConfig(slides=str(manifest), patches_per_slide=500.0, slide_mb=20.0))
    assert (work.num_slides, work.num_cases, work.num_patches) == (9, 3, 4_500)
    assert work.slide_bytes == 9 * 20e6
    manifest.write_text("path,slide_id\n")
    with pytest.raises(ConfigError):
        workload_of(PlanConfig(slides=str(manifest)))


def test_the_screen_says_what_was_measured_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    file: dict[str, Any] = {
        "format": 1,
        "mstar_version": "0",
        "date": "2026-01-31",
        "machine": "m",
        "device": "cpu",
        "device_name": "a core",
        "encoder": "vit_tiny",
        "rates": {"encoder_patches_per_s": 3.0, "patch_read_core_s": 0.5},
        "notes": {},
    }
    path.write_text(json.dumps(file))
    inputs = read_inputs(PlanConfig(preset="pilot", rates=str(path)))
    text = plan_screen(inputs, make_plan(inputs.job, ("embed",)), None)
    assert "not used for h200: encoder_patches_per_s" in text
    assert inputs.job.rates.patch_read_core_s == 0.5


def test_the_curve_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "curve.png"
    assert main(["plan", "--num-slides", "60", "--curve", str(path)]) == ExitCode.COMPLETE
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "bends at" in capsys.readouterr().out


def test_amounts_are_said_as_people_say_them() -> None:
    assert [bytes_text(n) for n in (11, 2.9e12, 999e9, 5e15)] == [
        "11 B",
        "2.9 TB",
        "999 GB",
        "5 PB",
    ]
    assert [count_text(n) for n in (7, 4_000, 906_250, 23e6)] == ["7", "4000", "906 k", "23 M"]


def test_planning_needs_neither_torch_nor_ray() -> None:
    """It answers at once, on any laptop."""
    code = "import sys, mstar.planning.job; print(sorted({'torch', 'ray'} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
