"""Benchmarks of machines that are rarely at hand run at least where they are not meant for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.bench_gpu import PASSES_OF_A_STEP, forward_operations
from mstar.planning.built_in import STEP_FLOP

HERE = Path(__file__).parent


def lines_of(program: str, *arguments: str) -> list[dict[str, object]]:
    done = subprocess.run(
        [sys.executable, str(HERE / "benchmarks" / program), *arguments],
        env=os.environ | {"PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_the_benchmark_of_a_card_runs_on_a_cpu() -> None:
    small = ("--encoder", "vit_micro", "--batch", "8", "--steps", "2", "--side", "256")
    matrices, *ways = lines_of("bench_gpu.py", "--device", "cpu", *small)
    assert float(str(matrices["tflop_per_s"])) > 0
    assert [str(way["row"]).split(",")[0] for way in ways] == ["forward", "embed", "step"]
    for way in ways:
        assert float(str(way["patches_per_s"])) > 0
        assert float(str(way["percent_of_matrix_rate"])) > 0


def test_operations_of_a_pass_are_those_that_plans_count_with() -> None:
    """A step of ViT-L/16 on one patch: 492 G operations, as `platform/docs/stage2.md` has it."""
    counted = PASSES_OF_A_STEP * forward_operations("timm:vit_large_patch16_224")
    assert counted == pytest.approx(STEP_FLOP, rel=1e-3)
