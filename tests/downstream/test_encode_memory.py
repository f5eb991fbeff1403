"""`mstar encode` on a slide of 120,000 patches: its memory is that of a window."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mstar.downstream.encode_files import read_parquet
from mstar.features.files import write_features
from mstar.features.store import FeatureStore
from mstar.models.aggregator import Aggregator, AggregatorConfig
from mstar.models.stage1_files import save_aggregator
from support.feature_files import toy_grid, toy_provenance

DIM, WINDOW, FEW, MANY = 1024, 4096, 8192, 120_000
ENCODE = """
import json, sys, threading, time
from mstar.downstream.encode_config import EncodeConfig
from mstar.downstream.encode_job import run

def told():  # own memory in MB; pages of mapped files, which the system takes back, are beside it
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

config = json.loads(sys.argv[1])

def encode(name):
    places = {key: f"{config[key]}/{name}" for key in ("features", "out")}
    run(EncodeConfig(**(config | places)))

encode("few")  # what a first run loads and keeps: libraries, the aggregator, work space
peak, going = [told()], True

def watch():
    while going:
        peak.append(told())
        time.sleep(0.01)

watcher = threading.Thread(target=watch)
watcher.start()
start = time.perf_counter()
encode("many")
going = False
watcher.join()
print(json.dumps({"first_mb": peak[0], "peak_mb": max(peak), "s": time.perf_counter() - start}))
"""


def write_slide_features(root: Path, num: int) -> None:
    """A store with one slide."""
    store = FeatureStore.open_or_create(str(root), {"encoder": "noise"})
    rows = np.random.default_rng(num).standard_normal((num, DIM), dtype=np.float32)
    write_features(
        root / "s.h5",
        toy_grid("s", num),
        rows.astype(np.float16),
        toy_provenance(store.fingerprint),
    )


@pytest.mark.slow
def test_120_000_patches_take_the_memory_of_a_window(tmp_path: Path) -> None:
    write_slide_features(tmp_path / "F" / "few", FEW)
    write_slide_features(tmp_path / "F" / "many", MANY)
    settings = AggregatorConfig(input_dim=DIM, dim=256, heads=4, landmarks=64, mode="masked")
    save_aggregator(str(tmp_path / "S1"), Aggregator(settings))
    config = {
        "features": f"{tmp_path}/F", "aggregator": f"{tmp_path}/S1", "out": f"{tmp_path}/V",
        "window": WINDOW, "device": "cpu", "tracking": False, "picture": False,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", ENCODE, json.dumps(config)],
        capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    table = read_parquet(f"{tmp_path}/V/many/slide_vectors.parquet")[0]
    assert table.column("patches").to_pylist() == [MANY]
    assert table.column("windows").to_pylist() == [-(-MANY // WINDOW)]
    features_mb = MANY * DIM * 2 / 2**20
    assert features_mb > 230
    # windows of 4,096 × 1,024 take 16 MB as float32; all rows at once would take 469 more
    assert found["peak_mb"] - found["first_mb"] < 200, found
