"""Activations lie on huge pages where the system gives them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NAME = "THP_MEM_ALLOC_ENABLE"
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PROGRAM = """
import mstar.models.heads, torch
torch.set_num_threads(1)
x = torch.empty(32, 1024, 1024).fill_(1.0)
lines = open("/proc/self/smaps_rollup").read().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("AnonHugePages")))
"""


def huge_kib(**environment: str) -> int:
    """KiB on huge pages in a process that holds a tensor of 128 MiB."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        check=True,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != NAME} | environment,
    )
    return int(run.stdout)


def test_large_tensors_are_on_huge_pages_unless_told_otherwise() -> None:
    """Of 128 MiB most; none where the user says so."""
    if not SETTING.exists() or "[madvise]" not in SETTING.read_text():
        pytest.skip("this system does not give huge pages on request (madvise)")
    assert huge_kib(**{NAME: "0"}) < 20_000
    assert huge_kib() > 100_000
