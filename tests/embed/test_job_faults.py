"""Runs that share an output, frozen owners, killed drivers, slides that kill their reader."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mstar.embed import job
from mstar.errors import WorkerError
from mstar.features.files import read_features
from mstar.storage.ledger import FailureLedger
from mstar.training.exit_codes import ExitCode
from support.cohorts import leftovers, output_digests, quick_embed, ray_processes
from support.poison import poisoned_factory

pytestmark = pytest.mark.ray


def run_in_thread(config: job.EmbedConfig, codes: list[int]) -> threading.Thread:
    thread = threading.Thread(target=lambda: codes.append(job.run(config)))
    thread.start()
    return thread


def wait_for(pattern: str, out: Path, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not any(out.glob(pattern)):
        assert time.monotonic() < deadline, f"no {pattern} in {out} after {timeout_s} s"
        time.sleep(0.02)


def test_two_runs_share_the_work(
    slides: Path, undisturbed: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Started together on one output: each slide is embedded once, both end complete."""
    out, codes = tmp_path / "out", []
    capsys.readouterr()
    threads = [run_in_thread(quick_embed(slides, out), codes) for _ in range(2)]
    for thread in threads:
        thread.join()
    assert codes == [ExitCode.COMPLETE, ExitCode.COMPLETE]
    by_run = [int(n) for n in re.findall(r"\((\d+) by this run\)", capsys.readouterr().out)]
    assert len(by_run) == 2
    assert sum(by_run) == len(undisturbed)
    assert output_digests(out) == undisturbed
    assert leftovers(out) == []


@pytest.mark.slow
def test_a_frozen_owner_that_wakes_late_changes_nothing(
    slides: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    """SIGSTOP past its lease: another run takes over; woken, it finds everything done."""
    out, codes = tmp_path / "out", []
    frozen_run = run_in_thread(quick_embed(slides, out, lease_s=3.0), codes)
    wait_for("_state/attempts/**/*.json", out)
    (frozen,) = ray_processes("BundleActor")
    os.kill(frozen, signal.SIGSTOP)
    try:
        assert job.run(quick_embed(slides, out, lease_s=3.0)) == ExitCode.COMPLETE
        assert output_digests(out) == undisturbed
        written = {path: path.stat().st_mtime_ns for path in out.rglob("*.h5")}
    finally:
        os.kill(frozen, signal.SIGCONT)
    frozen_run.join(timeout=120)
    assert codes == [ExitCode.COMPLETE]
    assert output_digests(out) == undisturbed
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.h5")} == written


@pytest.mark.slow
def test_a_slide_that_kills_its_reader_is_quarantined(
    slides: Path, undisturbed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two deaths, then alone, then the ledger; its neighbours are embedded."""
    poison = "slide 2 ü"
    out = tmp_path / "out"
    config = quick_embed(slides, out, bundle_batches=1_000)  # all slides in one bundle
    with monkeypatch.context() as patched:
        patched.setattr(job, "worker_factory", poisoned_factory(poison))
        assert job.run(config) == ExitCode.EXCLUSIONS
    (failure,) = FailureLedger(f"{out}/failures").all()
    assert failure.slide_id == poison
    assert failure.permanent
    assert failure.attempts == 3
    assert "quarantined" in failure.message
    whole = {name: digest for name, digest in undisturbed.items() if poison not in name}
    assert output_digests(out) == whole
    # Left alone by the next run, embedded when asked.
    assert job.run(config) == ExitCode.EXCLUSIONS
    retry = replace(config, run=replace(config.run, retry_failed=True))
    assert job.run(retry) == ExitCode.COMPLETE
    assert output_digests(out) == undisturbed
    assert leftovers(out) == []


MOMENTS = {
    "claimed": "_state/attempts/**/*.json",
    "a part is written": "_state/parts/**/*.part",
    "a slide is done": "*.h5",
}


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("claimed", marks=pytest.mark.slow),
        "a part is written",
        pytest.param("a slide is done", marks=pytest.mark.slow),
    ],
)
def test_a_killed_driver(
    moment: str, slides: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    """`kill -9` of the driver, with the local Ray it started: a rerun ends with the same bytes."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mstar.cli.main", "embed", "debug"]
    command += ["--slides", str(slides), "--out", str(out), "--batch-size", "4"]
    command += ["--bundle-batches", "2", "--no-tracking", "--cpus-per-worker", "1"]
    environment = {name: v for name, v in os.environ.items() if name != "RAY_ADDRESS"}
    log = (tmp_path / "log").open("wb")
    driver = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_for(MOMENTS[moment], out, timeout_s=120)
        assert driver.poll() is None, (tmp_path / "log").read_text()
    finally:
        driver.kill()
        driver.wait()
    wait_for_death(out)
    done_before = {path: path.stat().st_mtime_ns for path in out.rglob("*.h5")}
    for path in done_before:
        read_features(path, check="full")
    assert len(done_before) < len(undisturbed), "the job ended before it was killed"
    assert job.run(quick_embed(slides, out)) == ExitCode.COMPLETE
    assert output_digests(out) == undisturbed
    assert {path: path.stat().st_mtime_ns for path in done_before} == done_before
    assert leftovers(out) == []


def wait_for_death(out: Path, timeout_s: float = 60) -> None:
    """Until no worker of the killed driver writes any more: Ray ends them when it notices."""
    deadline, before = time.monotonic() + timeout_s, None
    while True:
        now = sorted((str(path), path.stat().st_mtime_ns) for path in out.rglob("*.part"))
        now += sorted((str(path), path.stat().st_mtime_ns) for path in out.rglob("*.h5"))
        if now == before:
            return
        assert time.monotonic() < deadline
        before = now
        time.sleep(2)


def test_an_encoder_that_fails_ends_the_job_and_blames_no_slide(
    slides: Path, tmp_path: Path, local_ray: None
) -> None:
    """One clear error with what the worker said; no slide is in the ledger, none is half done."""
    config = quick_embed(slides, tmp_path / "out", encoder="support.broken_encoder:encoder")
    with pytest.raises(WorkerError, match="illegal memory access"):
        job.run(config)
    assert not list(FailureLedger(f"{config.out}/failures").all())
    assert output_digests(tmp_path / "out") == {}
