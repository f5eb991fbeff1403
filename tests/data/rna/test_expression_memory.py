"""Memory does not grow with the matrix: measured in a process of its own, fed through a pipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NUM_GENES = 20_000
LIMIT_BYTES = 4_000_000_000

WRITER = """
import sys
import numpy as np
path, rows, columns, by_cases = sys.argv[1], *map(int, sys.argv[2:])
rng = np.random.default_rng(0)
lines = ["\\t".join("%.4f" % v for v in rng.lognormal(3, 2, columns)).encode() for _ in range(16)]
head, prefix = ("case_id", "G") if by_cases else ("Hugo_Symbol", "TCGA-AA-")
with open(path, "wb") as file:
    file.write("\\t".join([head, *(f"{prefix}{i:05d}" for i in range(columns))]).encode() + b"\\n")
    for row in range(rows):
        file.write(b"R%05d\\t" % row + lines[row % 16] + b"\\n")
"""

READER = """
import json, resource, sys, time
from mstar.data.rna.expression import ExpressionConfig, preprocess_expression
path, out = sys.argv[1:]
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
config = ExpressionConfig(unit="rsem", transform="none", scratch=out)
summary = preprocess_expression(path, out + "/store", config)
took_s = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
unit = 1 if sys.platform == "darwin" else 1024
print(json.dumps([peak * unit, before * unit, took_s, summary.num_cases, summary.num_genes]))
"""


def peak_bytes(folder: Path, num_cases: int, *, by_cases: bool) -> int:
    """Peak memory of preprocessing a matrix that never lies on a disk."""
    folder.mkdir()
    pipe = folder / "matrix.tsv"
    os.mkfifo(pipe)
    shape = (num_cases, NUM_GENES) if by_cases else (NUM_GENES, num_cases)
    arguments = [str(pipe), *(str(size) for size in shape), str(int(by_cases))]
    writer = subprocess.Popen([sys.executable, "-c", WRITER, *arguments])
    try:
        done = subprocess.run(
            [sys.executable, "-c", READER, str(pipe), str(folder)],
            check=True,
            capture_output=True,
            text=True,
            timeout=500,
        )
    finally:
        writer.kill()
        writer.wait()
    peak, before, took_s, cases, genes = json.loads(done.stdout)
    assert (cases, genes) == (num_cases, NUM_GENES)
    print(f"{num_cases:,} cases: peak {peak / 1e6:.0f} MB ({before / 1e6:.0f}), {took_s:.1f} s")
    return int(peak)


@pytest.mark.slow
@pytest.mark.parametrize("by_cases", [False, True])
def test_twenty_thousand_genes_of_ten_thousand_cases_fit_into_4_gb(
    tmp_path: Path, by_cases: bool
) -> None:
    small = peak_bytes(tmp_path / "small", 500, by_cases=by_cases)
    large = peak_bytes(tmp_path / "large", 2_000, by_cases=by_cases)
    per_case = max(0, large - small) / 1_500
    assert large + per_case * 8_000 < LIMIT_BYTES
    assert per_case < 4 * NUM_GENES  # less than one float32 row: the matrix is never held
