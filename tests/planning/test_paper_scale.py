"""The driver's work at the paper's size; reduced here, whole in benchmarks/scale_on_paper.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mstar.planning.fetching import OPEN_REQUESTS
from mstar.planning.stages import EMBED_READS, EMBED_WRITES
from support.paper_scale import (
    cut_shards,
    plan_embedding,
    plan_manifest,
    resume_stage2,
    run_schedule,
    write_index,
)

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "scale_on_paper.py"


def test_twelve_thousand_markers_are_listed_in_a_few_requests(tmp_path: Path) -> None:
    """A page of 1,000 names a request: nothing is asked of a single slide."""
    found = plan_embedding(tmp_path, 3_500, 2_200)
    assert (found["slides"], found["done"], found["pending"]) == (3_500, 2_200, 1_300)
    assert found["requests_for_done"] == 3
    assert found["requests"] <= 3 + 4 + 3  # markers, slides, failures and what looks for a folder


def test_a_manifest_is_planned_without_being_held(tmp_path: Path) -> None:
    found = plan_manifest(tmp_path, 20_000, 5_000)
    assert (found["slides"], found["pending"]) == (20_000, 15_000)
    assert found["cpu_s"] < 5


def test_stage_2_over_116_million_patches_is_resumed_in_seconds(tmp_path: Path) -> None:
    """The whole size: 5,665 shards, half an epoch done, one rank of 32."""
    write_index(tmp_path, 116_000_000)
    found = resume_stage2(tmp_path)
    assert (found["rows"], found["shards"]) == (116_000_000, 5_665)
    assert found["steps"] == 113_282  # as docs/stage2.md has it
    assert found["rows_before_step"] == pytest.approx(58_000_000, rel=1e-4)
    assert found["pieces_of_a_rank"] * 64 == pytest.approx(found["row_groups"], rel=0.05)
    assert found["cpu_s"] < 10


def test_shards_of_116_million_patches_are_planned_in_seconds() -> None:
    found = cut_shards(11_727, 116_000_000)
    assert found["rows"] == pytest.approx(116_000_000, rel=1e-3)
    assert 1_000 < found["units"] < 4_000
    assert found["cpu_s"] < 10


def test_scheduling_does_not_slow_down(tmp_path: Path) -> None:
    """The last tenth of the trials costs no more than the second one did, but for noise."""
    found = run_schedule(tmp_path, num_studies=60, trials=8)
    assert found["pieces"] >= 60 * 8
    assert found["ms_a_piece_late"] < 3 * found["ms_a_piece_early"] + 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", ["listing", "manifest", "shards", "stage2"])
def test_the_whole_size_in_a_process_of_its_own(part: str) -> None:
    """Seconds of CPU, and less than 1 GB, imports included."""
    ended = subprocess.run(
        [sys.executable, str(PROGRAM), part], capture_output=True, text=True, check=True
    )
    found = json.loads(ended.stdout)
    assert found["most_memory_mb"] < 1_000
    assert found["cpu_s"] < 60


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_tune_does_not_slow_down() -> None:
    """A thousand trials through Ray Tune; 10,000 with `scale_on_paper.py tune`."""
    flags = ["tune", "--studies", "125", "--trials", "8"]
    ended = subprocess.run(
        [sys.executable, str(PROGRAM), *flags], capture_output=True, text=True, check=True
    )
    found = json.loads(ended.stdout.strip().splitlines()[-1])
    assert found["driver_pieces"] >= 1_000
    assert found["driver_ms_a_piece_late"] < 3 * found["driver_ms_a_piece_early"]


def test_a_slide_costs_the_requests_that_the_plan_counts(s3_server: str, tmp_path: Path) -> None:
    """The embedding worker against S3: the second slide, when the store is there."""
    from mstar.embed.assembly import EmbedPlan, make_worker
    from mstar.embed.plan import Bundle
    from mstar.models.patch_encoders import prepare_weights
    from mstar.schema import SlideRef
    from mstar.storage.objects import put_file
    from support.cohorts import quick_embed
    from support.s3 import CountingProxy, make_bucket, s3_environment
    from support.slides import SlideSpec, write_slide

    bucket, slides = make_bucket("counted"), []
    for at in range(2):
        path = write_slide(tmp_path / f"s{at}.svs", SlideSpec(width=520, height=520, full=True))
        uri = f"{bucket}/slides/{path.name}"
        put_file(path, uri)
        slides.append(SlideRef(slide_id=path.stem, uri=uri, size_bytes=path.stat().st_size))
    config = quick_embed("-", f"{bucket}/out", encoder="vit_micro", cache_dir=str(tmp_path / "c"))
    with CountingProxy(s3_server) as proxy, s3_environment(proxy.endpoint):
        worker = make_worker(
            EmbedPlan(
                config=config,
                run_id="r",
                weights=prepare_weights("vit_micro", "random:0"),
                device="cpu",
                precision="float32",
                batch_size=16,
                torch_threads=1,
                reader_threads=1,
            )
        )
        worker.run(Bundle(number=0, slides=(slides[0],)))
        proxy.reset()
        worker.run(Bundle(number=1, slides=(slides[1],)))
        counted = dict(proxy.served.requests)
        worker.close()
    fetches = 1  # the slide is smaller than a block
    assert counted["GET"] + counted["HEAD"] - fetches == EMBED_READS
    # the eighth renews the lease, of a slide that takes longer than these
    assert counted["PUT"] + counted["DELETE"] in (EMBED_WRITES - 1, EMBED_WRITES)
    assert OPEN_REQUESTS < EMBED_READS + EMBED_WRITES  # the rest is asked while it is written
