"""The shard job cut otherwise, stopped, killed or run again: the same bytes, nothing twice."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mstar.errors import ConfigError, FeatureError, SlideError, StoreMismatchError
from mstar.pretrain import shards_plan
from mstar.pretrain.shards_check import ShardsCheckConfig
from mstar.pretrain.shards_check import run as check
from mstar.pretrain.shards_config import ShardsConfig
from mstar.pretrain.shards_job import write_shards
from mstar.storage import objects
from mstar.storage.leases import LeaseBoard
from mstar.training.exit_codes import ExitCode
from support.shard_runs import changed, digests, elsewhere, shards_of, small_work, with_own_slides


@pytest.fixture(scope="module", autouse=True)
def _small_work() -> Iterator[None]:
    with small_work():
        yield


@pytest.fixture
def config(shard_inputs: ShardsConfig, tmp_path: Path) -> ShardsConfig:
    """The same job with an output of its own."""
    return elsewhere(shard_inputs, tmp_path)


def test_bytes_do_not_depend_on_how_the_work_is_cut(
    finished_shards: ShardsConfig,
    config: ShardsConfig,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(shards_plan, "_LEAST_UNIT_ROWS", 7)  # parts of slides
    other = replace(config, run=replace(config.run, threads=1))
    assert write_shards(changed(other, scratch=str(tmp_path / "scratch"))) == ExitCode.COMPLETE
    different = {
        name for name, sha in digests(finished_shards).items() if digests(other)[name] != sha
    }
    assert different == {"shards.json"}, "it tells how the work was cut"
    assert not list((tmp_path / "scratch").rglob("*.rows")), "buckets are taken away"


class _Killed(BaseException):
    """What a process does that is no more."""


def _fail_at(monkeypatch: pytest.MonkeyPatch, number: int) -> Callable[[], bool]:
    """The `number`-th write from now on kills; says whether it did."""
    honest, left = objects.write_whole, [number]

    def write(uri: Any, data: Any, **options: Any) -> bool:
        if "/claims/" not in str(uri):
            left[0] -= 1
            if left[0] == 0:
                raise _Killed
        return honest(uri, data, **options)

    monkeypatch.setattr(objects, "write_whole", write)
    return lambda: left[0] <= 0


def test_a_run_stopped_at_any_write_goes_on_to_the_same_bytes(
    config: ShardsConfig, tmp_path: Path
) -> None:
    """Stopped again and again, a write further every time, one output is brought to its end."""
    config = changed(config, weights=None)
    undisturbed = elsewhere(config, tmp_path / "undisturbed")
    assert write_shards(undisturbed) == ExitCode.COMPLETE
    stops = 0
    while not (shards_of(config) / "index.json").exists():
        with pytest.MonkeyPatch.context() as patch:
            _fail_at(patch, stops + 1)  # a unit, a shard, a record, the preview, the index
            with suppress(_Killed):
                write_shards(config)
        stops += 1
        assert stops < 20
    assert write_shards(config) == ExitCode.COMPLETE
    assert digests(config) == digests(undisturbed)
    assert stops > 4


@pytest.mark.slow
@pytest.mark.parametrize("after", ["_state/buckets", "shard-00001", "_state/done"])
def test_kill_9_and_rerun(after: str, finished_shards: ShardsConfig, config: ShardsConfig) -> None:
    """The process is killed as soon as the first such file is seen."""
    program = (
        "import sys, time, pickle, functools\n"
        "from mstar.storage import objects\n"
        "honest = objects.write_whole\n"
        "def slowly(*a, **k):\n    time.sleep(0.3)\n    return honest(*a, **k)\n"
        "objects.write_whole = slowly\n"
        "from mstar.pretrain import shards_plan\n"
        "shards_plan._LEAST_UNIT_ROWS, shards_plan._SLACK = 25, 8\n"
        "from mstar.pretrain.shards_job import write_shards\n"
        "write_shards(pickle.load(open(sys.argv[1], 'rb')))\n"
    )
    import pickle

    pickled = Path(config.out) / "config.pickle"
    pickled.write_bytes(pickle.dumps(config))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    child = subprocess.Popen([sys.executable, "-c", program, str(pickled)], env=environment)
    deadline_s = time.monotonic() + 120
    while not any(after in name for name in digests(config)):
        assert child.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (shards_of(config) / "index.json").exists()
    assert write_shards(config) == ExitCode.COMPLETE
    assert digests(config) == digests(finished_shards)


@pytest.mark.slow
def test_two_ray_workers_write_the_same_bytes(
    finished_shards: ShardsConfig, config: ShardsConfig, local_ray: None
) -> None:
    on_ray = replace(config, run=replace(config.run, workers=2))
    assert write_shards(on_ray) == ExitCode.COMPLETE
    assert digests(on_ray) == digests(finished_shards)


def test_a_finished_set_is_left_as_it_is(
    finished_shards: ShardsConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    def times() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in shards_of(finished_shards).iterdir()}

    before = times()
    assert write_shards(finished_shards) == ExitCode.COMPLETE
    assert times() == before
    assert "there already" in capsys.readouterr().out


def test_other_settings_in_the_same_folder_are_refused(finished_shards: ShardsConfig) -> None:
    before = digests(finished_shards)
    with pytest.raises(StoreMismatchError, match=r"quality: expected 80, found 95"):
        write_shards(changed(finished_shards, quality=80))
    assert digests(finished_shards) == before


def test_shards_of_unknown_origin_are_not_written_over(config: ShardsConfig) -> None:
    shards_of(config).mkdir()
    (shards_of(config) / "shard-00000.parquet").write_bytes(b"precious")
    with pytest.raises(StoreMismatchError, match=r"shard-00000.parquet without shards.json"):
        write_shards(config)


def test_buckets_of_other_settings_are_collected(config: ShardsConfig, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    ours = changed(config, scratch=str(scratch))
    prefix = shards_plan.find_sources(ours).bucket_prefix
    (scratch / f"{prefix}0123").mkdir(parents=True)
    (scratch / f"{prefix}0123" / "unit-000000.rows").write_bytes(b"stale")
    (scratch / "buckets-of-another-output").mkdir()
    (scratch / "buckets-of-another-output" / "unit-000000.rows").write_bytes(b"theirs")
    assert write_shards(ours) == ExitCode.COMPLETE
    left = [str(path.relative_to(scratch)) for path in scratch.rglob("*.rows")]
    assert left == ["buckets-of-another-output/unit-000000.rows"]


def test_two_runs_do_not_write_the_same_shards(config: ShardsConfig) -> None:
    board = LeaseBoard(str(shards_of(config) / "_state" / "claims"), run_id="other")
    assert board.acquire("shards")
    with pytest.raises(ConfigError, match=r"another run \(other\)"):
        write_shards(config)
    board.release("shards")
    assert write_shards(config) == ExitCode.COMPLETE


def test_too_many_unreadable_patches_stop_the_job_and_a_rerun_reads_them_anew(
    finished_shards: ShardsConfig, config: ShardsConfig, tmp_path: Path
) -> None:
    config = with_own_slides(config, tmp_path)
    slide = Path(config.cohort) / "slides" / "shifted.svs"
    slide.rename(slide.with_suffix(".gone"))
    with pytest.raises(SlideError, match=r"\d+ of \d+ patches cannot be read"):
        write_shards(config)
    assert not (shards_of(config) / "index.json").exists()
    assert (shards_of(config) / "left_out.csv").read_text().count("unreadable slide") > 5
    slide.with_suffix(".gone").rename(slide)
    assert write_shards(config) == ExitCode.COMPLETE
    parquet = {
        name: sha for name, sha in digests(finished_shards).items() if name.endswith(".parquet")
    }
    assert parquet.items() <= digests(config).items()
    assert not (shards_of(config) / "left_out.csv").exists()


def test_the_gate_is_asked_again_when_it_is_moved(
    config: ShardsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _fail_at(patch, 3)
        with pytest.raises(_Killed):
            write_shards(config)
    with pytest.raises(FeatureError, match="mean cosine of at least 1"):
        write_shards(changed(config, least_cosine=1.0))


def test_in_a_bucket_the_bytes_are_the_same(
    finished_shards: ShardsConfig, config: ShardsConfig, s3_server: str, tmp_path: Path
) -> None:
    from support.s3 import make_bucket

    bucket = make_bucket("shards")
    places = {}
    for name, folder in (("C", config.cohort), ("F", config.features), ("T", config.out)):
        places[name] = f"{bucket}/{name}"
        for info in objects.list_files(folder):
            objects.put_file(info.uri, f"{bucket}/{name}/{info.rel}")
        record = Path(folder) / "store.json"
        if record.exists():
            objects.put_file(record, f"{bucket}/{name}/store.json")
    remote = replace(config, cohort=places["C"], features=places["F"], out=places["T"])
    assert write_shards(remote) == ExitCode.COMPLETE
    root = f"{bucket}/T/shards"
    found = {
        info.rel: hashlib.sha256(objects.read_bytes(info.uri)).hexdigest()
        for info in objects.list_files(root)
    }
    assert found == digests(finished_shards)
    assert check(ShardsCheckConfig(shards=places["T"])) == ExitCode.COMPLETE
