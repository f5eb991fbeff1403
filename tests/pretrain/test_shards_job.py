"""Targets and slides in, shuffled shards out: every patch once, whatever happens on the way."""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mstar.data.shards.format import ShardIndex, decode_targets, read_index
from mstar.data.shards.hashing import row_hashes
from mstar.data.targets import TargetStore
from mstar.errors import (
    CohortError,
    ConfigError,
    FeatureError,
    SlideError,
    StorageError,
    StoreMismatchError,
    WeightsError,
)
from mstar.features.store import FeatureStore
from mstar.pretrain import shards_plan, shards_report
from mstar.pretrain.shards_check import ShardsCheckConfig
from mstar.pretrain.shards_check import run as check
from mstar.pretrain.shards_config import ShardsConfig
from mstar.pretrain.shards_job import write_shards
from mstar.slides.patches import read_patch
from mstar.slides.raw_tiles import decode
from mstar.slides.reader import open_slide
from mstar.storage import objects
from mstar.storage.leases import LeaseBoard
from mstar.training.exit_codes import ExitCode
from support.shard_inputs import KINDS, PASSED, PATCH_PX, TARGET_DIM, write_shard_inputs
from support.slides import spoil_tile

Digests = dict[str, str]


@pytest.fixture(scope="module", autouse=True)
def _small_work() -> Iterator[None]:
    """So little data would be one unit and one bucket."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards_plan, "_LEAST_UNIT_ROWS", 25)
        patch.setattr(shards_plan, "_SLACK", 8)
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> ShardsConfig:
    """Slides, features and targets that no test changes."""
    return write_shard_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def finished(inputs: ShardsConfig, tmp_path_factory: pytest.TempPathFactory) -> ShardsConfig:
    """One undisturbed run, which no test changes."""
    config = elsewhere(inputs, tmp_path_factory.mktemp("finished"))
    assert write_shards(config) == ExitCode.COMPLETE
    return config


@pytest.fixture
def config(inputs: ShardsConfig, tmp_path: Path) -> ShardsConfig:
    """The same job with an output of its own."""
    return elsewhere(inputs, tmp_path)


def elsewhere(config: ShardsConfig, folder: Path) -> ShardsConfig:
    """The job with its targets copied to another output."""
    shutil.copytree(Path(config.out) / "targets", folder / "T" / "targets")
    return replace(config, out=str(folder / "T"))


def with_own_slides(config: ShardsConfig, folder: Path) -> ShardsConfig:
    """The job with slides that a test may spoil."""
    shutil.copytree(config.cohort, folder / "C")
    return replace(config, cohort=str(folder / "C"))


def shards_of(config: ShardsConfig) -> Path:
    return Path(config.out) / "shards"


def digests(config: ShardsConfig) -> Digests:
    """Every file of the output, hidden ones too."""
    root = shards_of(config)
    files = [path for path in root.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def rows_of(config: ShardsConfig) -> list[dict[str, Any]]:
    index = read_index(config.out)
    tables = [pq.read_table(shards_of(config) / shard.name) for shard in index.shards]
    return pa.concat_tables(tables).to_pylist()


def changed(config: ShardsConfig, **settings: Any) -> ShardsConfig:
    return replace(config, shard=replace(config.shard, **settings))


# ------------------------------------------------------------------------------ what comes out


def test_every_patch_with_a_target_comes_once_and_with_its_own_target(
    finished: ShardsConfig,
) -> None:
    store = TargetStore.open(finished.out)
    expected = {}
    for slide_id in store.slide_ids():
        slide = store.read(slide_id)
        for (x, y), target in zip(slide.coords.tolist(), slide.targets, strict=True):
            expected[slide_id, x, y] = (slide.case_id, target.tobytes())
    rows = rows_of(finished)
    found = {
        (row["slide_id"], row["x_l0"], row["y_l0"]): (row["case_id"], row["target"]) for row in rows
    }
    assert len(rows) == len(found) == len(expected)
    assert found == expected


def test_rows_are_in_the_order_of_their_hash_over_all_shards(finished: ShardsConfig) -> None:
    rows = rows_of(finished)
    hashes = [
        int(row_hashes(0, row["slide_id"], np.array([[row["x_l0"], row["y_l0"]]]))[0])
        for row in rows
    ]
    assert hashes == sorted(hashes)
    assert len(read_index(finished.out).shards) > 1


def test_pixels_are_those_the_encoder_saw(finished: ShardsConfig) -> None:
    """Bit for bit where a raw tile was passed through, nearly where it was encoded."""
    features = FeatureStore.open(finished.features)
    rows = rows_of(finished)
    passed = 0
    for slide_id in features.done_ids():
        slide = open_slide(Path(finished.cohort) / "slides" / f"{slide_id}.svs")
        grid = features.read(slide_id).grid
        places = {tuple(place): row for row, place in enumerate(grid.coords.tolist())}
        for row in rows:
            if row["slide_id"] != slide_id:
                continue
            expected = read_patch(slide, grid, places[row["x_l0"], row["y_l0"]])
            pixels = decode(row["jpeg"])
            assert pixels.shape == (PATCH_PX, PATCH_PX, 3)
            if slide_id.startswith(PASSED):
                np.testing.assert_array_equal(pixels, expected)
                passed += 1
            else:
                error = (pixels.astype(float) - expected) ** 2
                assert 0 < error.mean() < 10
        slide.close()
    assert read_index(finished.out).counts.passed_through == passed > 0


def test_the_index_says_what_there_is(finished: ShardsConfig) -> None:
    index, rows = read_index(finished.out), rows_of(finished)
    targets = np.stack([np.frombuffer(row["target"], "<f2") for row in rows]).astype(float)
    np.testing.assert_allclose(index.target_mean, targets.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(index.target_std, targets.std(axis=0), atol=1e-6)
    assert index.num_rows == len(rows)
    assert (index.target_dim, index.patch_px) == (TARGET_DIM, PATCH_PX)
    assert index.counts.jpeg_bytes == sum(len(row["jpeg"]) for row in rows)
    assert (index.counts.num_slides, index.counts.num_cases) == (len(KINDS), 2)
    assert index.counts.left_out == {}
    assert index.encoder.input_px == 64
    assert index.encoder.weights_sha256 != "ab" * 32
    for shard in index.shards:
        data = (shards_of(finished) / shard.name).read_bytes()
        assert (shard.num_bytes, shard.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert index.cosine is not None
    assert 0.99 <= index.cosine.mean <= 1
    assert index.cosine.smallest < 1, "encoded patches are not quite the same"


def test_only_shards_and_what_describes_them_stay(finished: ShardsConfig) -> None:
    names = {name for name in digests(finished) if not name.endswith(".parquet")}
    assert names == {"index.json", "preview.jpg", "shards.json"}


# --------------------------------------------------------------------- whatever happens on the way


def test_bytes_do_not_depend_on_how_the_work_is_cut(
    finished: ShardsConfig, config: ShardsConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shards_plan, "_LEAST_UNIT_ROWS", 7)  # parts of slides
    other = replace(config, run=replace(config.run, threads=1))
    assert write_shards(changed(other, scratch=str(tmp_path / "scratch"))) == ExitCode.COMPLETE
    different = {name for name, sha in digests(finished).items() if digests(other)[name] != sha}
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
def test_kill_9_and_rerun(after: str, finished: ShardsConfig, config: ShardsConfig) -> None:
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
    assert digests(config) == digests(finished)


@pytest.mark.slow
def test_two_ray_workers_write_the_same_bytes(
    finished: ShardsConfig, config: ShardsConfig, local_ray: None
) -> None:
    on_ray = replace(config, run=replace(config.run, workers=2))
    assert write_shards(on_ray) == ExitCode.COMPLETE
    assert digests(on_ray) == digests(finished)


def test_a_finished_set_is_left_as_it_is(
    finished: ShardsConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    def times() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in shards_of(finished).iterdir()}

    before = times()
    assert write_shards(finished) == ExitCode.COMPLETE
    assert times() == before
    assert "there already" in capsys.readouterr().out


def test_other_settings_in_the_same_folder_are_refused(finished: ShardsConfig) -> None:
    before = digests(finished)
    with pytest.raises(StoreMismatchError, match=r"quality: expected 80, found 95"):
        write_shards(changed(finished, quality=80))
    assert digests(finished) == before


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


def test_in_a_bucket_the_bytes_are_the_same(
    finished: ShardsConfig, config: ShardsConfig, s3_server: str, tmp_path: Path
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
    assert found == digests(finished)
    assert check(ShardsCheckConfig(shards=places["T"])) == ExitCode.COMPLETE


# ------------------------------------------------------------------------------- what is refused


def test_unreadable_patches_are_left_out_counted_and_named(
    config: ShardsConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_own_slides(config, tmp_path)
    spoil_tile(Path(config.cohort) / "slides" / "aligned.svs", tile=7)
    spoil_tile(Path(config.cohort) / "slides" / "rgb.svs", tile=12, damage="cut")
    assert write_shards(changed(config, max_left_out="2")) == ExitCode.COMPLETE
    index = read_index(config.out)
    assert index.counts.left_out == {"unreadable patch": 2}
    with (shards_of(config) / "left_out.csv").open() as file:
        named = {(row["slide_id"], row["x_l0"], row["y_l0"]) for row in csv.DictReader(file)}
    assert named == {("aligned", "256", "128"), ("rgb", "256", "256")}
    assert not named & {
        (row["slide_id"], str(row["x_l0"]), str(row["y_l0"])) for row in rows_of(config)
    }
    assert "2 × unreadable patch; named in" in capsys.readouterr().out


def test_too_many_unreadable_patches_stop_the_job_and_a_rerun_reads_them_anew(
    finished: ShardsConfig, config: ShardsConfig, tmp_path: Path
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
    parquet = {name: sha for name, sha in digests(finished).items() if name.endswith(".parquet")}
    assert parquet.items() <= digests(config).items()
    assert not (shards_of(config) / "left_out.csv").exists()


def test_pixels_that_the_encoder_sees_otherwise_are_refused(config: ShardsConfig) -> None:
    bad = changed(config, quality=1, pass_through=False)
    with pytest.raises(FeatureError, match=r"mean cosine of at least 0.99.*got 0\.\d+"):
        write_shards(bad)
    assert not any(name.endswith(".parquet") for name in digests(bad))
    assert write_shards(changed(bad, least_cosine=0.1)) == ExitCode.COMPLETE


def test_the_gate_is_asked_again_when_it_is_moved(
    config: ShardsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _fail_at(patch, 3)
        with pytest.raises(_Killed):
            write_shards(config)
    with pytest.raises(FeatureError, match="mean cosine of at least 1"):
        write_shards(changed(config, least_cosine=1.0))


def test_other_weights_are_refused_by_hash(config: ShardsConfig) -> None:
    with pytest.raises(WeightsError, match="expected weights with sha256"):
        write_shards(changed(config, weights="random:1"))


def test_without_weights_features_are_not_compared_and_that_is_said_loudly(
    config: ShardsConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write_shards(changed(config, weights=None)) == ExitCode.COMPLETE
    assert read_index(config.out).cosine is None
    out = capsys.readouterr().out
    assert "WARNING: the features of stored pixels are NOT compared" in out
    assert "NOT compared: no weights were given" in out


def test_the_disk_must_have_room(config: ShardsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_report, "free_bytes", lambda folder: 1000)
    with pytest.raises(StorageError, match="of free disk for buckets and"):
        write_shards(config)


def test_features_and_targets_must_belong_together(config: ShardsConfig, tmp_path: Path) -> None:
    other = FeatureStore.open_or_create(str(tmp_path / "F"), {"encoder": "another"})
    with pytest.raises(FeatureError, match="expected the features the targets were made from"):
        write_shards(replace(config, features=other.root))


def test_a_slide_that_the_cohort_lacks_is_named(config: ShardsConfig, tmp_path: Path) -> None:
    config = with_own_slides(config, tmp_path)
    manifest = Path(config.cohort) / "slides.csv"
    lines = [line for line in manifest.read_text().splitlines() if "coarse" not in line]
    manifest.write_text("\n".join(lines) + "\n")
    with pytest.raises(CohortError, match="slide coarse: expected in"):
        write_shards(config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quality": 0}, "quality: expected 1 to 100"),
        ({"shard_mb": 300, "memory_mb": 1000}, "at most a quarter of memory_mb"),
        ({"max_left_out": "many"}, "max-failures"),
    ],
)
def test_settings_without_a_meaning_are_refused(
    settings: dict[str, Any], message: str, inputs: ShardsConfig
) -> None:
    with pytest.raises(ConfigError, match=message):
        changed(inputs, **settings)


# ------------------------------------------------------------------------------------- settings


def test_images_of_the_encoders_size(config: ShardsConfig) -> None:
    assert write_shards(changed(config, image="encoder")) == ExitCode.COMPLETE
    index = read_index(config.out)
    assert index.patch_px == index.encoder.input_px == 64
    assert {decode(row["jpeg"]).shape for row in rows_of(config)} == {(64, 64, 3)}
    assert index.counts.passed_through == 0


def test_nothing_is_passed_through_when_it_is_not_wanted(config: ShardsConfig) -> None:
    assert write_shards(changed(config, pass_through=False)) == ExitCode.COMPLETE
    assert read_index(config.out).counts.passed_through == 0


def test_what_is_known_before_and_as_it_goes_is_said(
    config: ShardsConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write_shards(config) == ExitCode.COMPLETE
    said = capsys.readouterr()
    for words in ("bytes each with target", "raw tiles", "patches/s of one thread", "free"):
        assert words in said.out
    for words in ("shards 1/2:", "patches/s", "bytes/patch", "raw tiles", "free", "to go"):
        assert words in said.err


def test_a_dry_run_writes_nothing(config: ShardsConfig, capsys: pytest.CaptureFixture[str]) -> None:
    dry = replace(config, run=replace(config.run, dry_run=True))
    assert write_shards(dry) == ExitCode.COMPLETE
    assert not shards_of(config).exists()
    assert "Nothing was written" in capsys.readouterr().out


# ------------------------------------------------------------------------------- shards check


def test_check_finds_finished_shards_sound(
    finished: ShardsConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(ShardsCheckConfig(shards=finished.out)) == ExitCode.COMPLETE
    assert check(ShardsCheckConfig(shards=str(shards_of(finished)), decode=3)) == ExitCode.COMPLETE
    out = capsys.readouterr().out
    assert "sound" in out
    assert "WRONG" not in out


@pytest.fixture
def copy(finished: ShardsConfig, tmp_path: Path) -> Path:
    """Finished shards to spoil."""
    shutil.copytree(shards_of(finished), tmp_path / "shards")
    return tmp_path / "shards"


def cut(folder: Path, index: ShardIndex) -> None:
    path = folder / index.shards[0].name
    path.write_bytes(path.read_bytes()[:-100])


def flip(folder: Path, index: ShardIndex) -> None:
    path = folder / index.shards[0].name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lose(folder: Path, index: ShardIndex) -> None:
    (folder / index.shards[1].name).unlink()


def add_stray(folder: Path, index: ShardIndex) -> None:
    shutil.copy(folder / index.shards[0].name, folder / "shard-00099.parquet")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (cut, "bytes, got"),
        (flip, "its sha256 is not that of the index"),
        (lose, "got no such file"),
        (add_stray, "is not in index.json"),
    ],
)
def test_check_finds_damage(
    spoil: Callable[[Path, ShardIndex], None],
    said: str,
    copy: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(copy, read_index(str(copy)))
    assert check(ShardsCheckConfig(shards=str(copy))) == ExitCode.FAILED
    assert said in capsys.readouterr().out


def test_check_without_shards_is_a_usage_error(tmp_path: Path) -> None:
    assert check(ShardsCheckConfig(shards=str(tmp_path))) == ExitCode.USAGE
    assert decode_targets(pa.array([b"\0\0"], pa.binary(2)), 1).shape == (1, 1)
