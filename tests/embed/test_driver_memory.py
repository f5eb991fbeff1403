"""The driver's memory does not grow with the cohort."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mstar.embed.pending import SlideQueue
from mstar.embed.pipeline import PoolShape, run_bundles
from mstar.embed.plan import bundles, write_plan
from mstar.storage.ledger import FailureLedger
from support.noop import NoopWorker

pytestmark = pytest.mark.ray

MAX_GROWTH_MB = 200


def resident_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError


def write_manifest(path: Path, num_slides: int) -> None:
    schema = pa.schema([("path", pa.string()), ("slide_id", pa.string()), ("mpp", pa.float64())])
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, num_slides, 50_000):
            numbers = range(first, min(first + 50_000, num_slides))
            writer.write_table(
                pa.table(
                    {
                        "path": [f"s3://cohort/slides/{n:07d}.svs" for n in numbers],
                        "slide_id": [f"{n:07d}" for n in numbers],
                        "mpp": [0.25] * len(numbers),
                    },
                    schema,
                )
            )


@pytest.mark.parametrize("num_chunks", [10_000, pytest.param(1_000_000, marks=[pytest.mark.slow])])
@pytest.mark.timeout(1800)
def test_memory_is_flat(num_chunks: int, tmp_path: Path, local_ray: None) -> None:
    """Manifest → plan → Ray Data → tallies: growth between 10 % and 100 % of the chunks."""
    write_manifest(tmp_path / "slides.parquet", num_chunks)
    cohort = SlideQueue(
        str(tmp_path / "slides.parquet"),
        ledger=FailureLedger(str(tmp_path / "failures")),
        run_id="test",
        retry_failed=False,
    )
    plan = tmp_path / "plan.parquet"
    write_plan(plan, bundles(cohort.pending(set()), target_patches=480_000))
    done, at_tenth, most = 0, 0.0, 0.0
    shape = PoolShape(workers=2, num_cpus=1.0)
    for tally in run_bundles(str(plan), NoopWorker, shape):
        done += tally.done
        if done >= num_chunks // 10:
            now = resident_mb()
            at_tenth, most = at_tenth or now, max(most, now)
    assert done == num_chunks
    print(f"driver: {at_tenth:.0f} MB at 10 %, at most {most:.0f} MB until 100 %")
    assert most - at_tenth <= MAX_GROWTH_MB
