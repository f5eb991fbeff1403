"""How long a sweep over all 97 tasks takes on this machine.

    PYTHONPATH=tests python tests/benchmarks/full_list_sweep.py [--heads linear abmil]
        [--space paper] [--workers 2]

A generated cohort of 160 cases with labels for every task of the list, features of 16 numbers and
4 to 11 patches a slide, a tiny text encoder and a tiny decoder of reports: what is measured is the
sweep itself, not the arithmetic of large bags. One JSON line, with the load of the machine before
and after.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from mstar.downstream import sweep
from mstar.downstream.sweep_config import SweepConfig
from support.full_sweep import TINY_DECODER, full_cohort


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", nargs="+", default=["linear", "abmil"])
    parser.add_argument("--space", default="paper")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cohort, store = full_cohort(Path(folder))
        config = SweepConfig(
            labels=f"{cohort}/labels",
            features=(f"enc={store}",),
            cohort=cohort,
            stage1=f"{folder}/S1",
            stage2=f"{folder}/S2",
            option=TINY_DECODER,
            heads=tuple(given.heads),
            space=given.space,
            max_parallel=given.workers,
            cache_dir=f"{folder}/cache",
            out=f"{folder}/R",
        )
        before, began_s = os.getloadavg()[0], time.monotonic()
        code = sweep.run(config)
        seconds = time.monotonic() - began_s
        tasks = {path.parents[2].name for path in Path(config.out).glob("*/enc/*/study.json")}
        studies = len(list(Path(config.out).glob("*/enc/*/predictions-[te]*.parquet")))
        load = [round(before, 1), round(os.getloadavg()[0], 1)]
    print(json.dumps({
        "bench": "full list", "heads": given.heads, "space": given.space, "exit_code": code,
        "trained_tasks": len(tasks), "tested_studies": studies, "seconds": round(seconds),
        "cores": os.cpu_count(), "load_before_after": load,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
