"""`mstar targets`: the same bytes however it ran, only what is missing, and no held-out case."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mstar.cli.resolve import JobParts, resolve
from mstar.data.cases import read_cases, write_cases
from mstar.data.splits.registry import SplitRegistry, SplitRow, cases_digest, write_registry
from mstar.data.targets import TargetStore
from mstar.errors import CohortError, ConfigError, FeatureError, StorageError, StoreMismatchError
from mstar.features.store import FeatureStore
from mstar.models.stage1_files import load_aggregator
from mstar.pretrain import targets_job, targets_survey
from mstar.pretrain.shards_config import ShardsConfig, ShardSettings
from mstar.recipes import targets as recipes
from mstar.storage.ledger import FailureLedger
from mstar.training.exit_codes import ExitCode
from support.target_inputs import (
    WINDOW,
    TargetInputs,
    digests,
    features_of,
    write_aggregator,
    write_features,
    write_target_inputs,
)

SLIDES = {f"c{i}": {f"c{i}-s{k}": 5 + 7 * i + 11 * k for k in range(1 + i % 3)} for i in range(6)}
NUM_SLIDES = sum(map(len, SLIDES.values()))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> TargetInputs:
    return write_target_inputs(tmp_path_factory.mktemp("inputs"), SLIDES)


@pytest.fixture(scope="module")
def undisturbed(inputs: TargetInputs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of what one undisturbed run in this process leaves."""
    out = tmp_path_factory.mktemp("undisturbed")
    assert targets_job.run(inputs.config(out)) == ExitCode.COMPLETE
    found = digests(out)
    assert len(found) == NUM_SLIDES + 1
    return found


def with_registry(inputs: TargetInputs, parts: dict[str, str]) -> None:
    """A split registry: `parts` of the cases named, training for the others."""
    cases = read_cases(str(inputs.cohort / "cases.csv"))
    rows = tuple(
        SplitRow(
            case_id=case.case_id,
            cohort="X",
            part=parts.get(case.case_id, "train"),
            pretraining=case.case_id not in parts,
        )
        for case in cases
    )
    registry = SplitRegistry(name="x", seed=0, rows=rows, cases_digest=cases_digest(cases))
    write_registry(str(inputs.cohort), registry)


def done(out: Path) -> set[str]:
    return set(TargetStore.open(str(out)).slide_ids())


class TestAnyWay:
    """Equal bytes, and nothing twice."""

    @pytest.mark.ray
    def test_on_ray_as_in_this_process(
        self, inputs: TargetInputs, undisturbed: dict[str, str], tmp_path: Path, local_ray: None
    ) -> None:
        """Two actors, several bundles, against no Ray at all."""
        config = inputs.config(tmp_path, workers=2, bundle_windows=2)
        assert targets_job.run(config) == ExitCode.COMPLETE
        assert digests(tmp_path) == undisturbed
        state = [path for path in (tmp_path / "targets/_state").rglob("*") if path.is_file()]
        assert state == []

    def test_a_second_run_does_nothing_and_a_third_only_what_is_missing(
        self,
        inputs: TargetInputs,
        undisturbed: dict[str, str],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        config = inputs.config(tmp_path, bundle_windows=1)
        assert targets_job.run(config) == ExitCode.COMPLETE
        written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.h5")}
        capsys.readouterr()
        assert targets_job.run(config) == ExitCode.COMPLETE
        assert "(0 by this run)" in capsys.readouterr().out
        assert {path: path.stat().st_mtime_ns for path in written} == written
        (tmp_path / "targets" / "c5-s1.h5").unlink()
        assert targets_job.run(config) == ExitCode.COMPLETE
        assert "(1 by this run)" in capsys.readouterr().out
        assert digests(tmp_path) == undisturbed

    @pytest.mark.parametrize(
        "moment",
        [
            "a case is half written",
            pytest.param("a window is computed", marks=pytest.mark.slow),
            pytest.param("a case is written", marks=pytest.mark.slow),
        ],
    )
    def test_killed_and_run_again(
        self,
        moment: str,
        inputs: TargetInputs,
        undisturbed: dict[str, str],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """`kill -9` in the middle: whole files only, and the rerun ends with the same bytes."""
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, moment, str(inputs.cohort.parent), str(tmp_path)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert killed.returncode == -9, killed.stderr
        store = TargetStore.open(str(tmp_path))
        assert list(store.verify()) == []
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.h5")}
        assert 0 < len(before) < NUM_SLIDES
        whole = sum(done(tmp_path).issuperset(of_case) for of_case in SLIDES.values())
        assert targets_job.run(inputs.config(tmp_path)) == ExitCode.COMPLETE
        assert f"({len(SLIDES) - whole} by this run)" in capsys.readouterr().out
        assert digests(tmp_path) == undisturbed
        assert {path: path.stat().st_mtime_ns for path in before} == before

    def test_another_seed_gives_other_windows(
        self, inputs: TargetInputs, undisturbed: dict[str, str], tmp_path: Path
    ) -> None:
        assert targets_job.run(inputs.config(tmp_path, seed=1)) == ExitCode.COMPLETE
        changed = {
            name for name, digest in digests(tmp_path).items() if undisturbed[name] != digest
        }
        assert len(changed) == NUM_SLIDES + 1  # the fingerprint is in every file


# kills itself at a moment of the third case
KILLED = """
import os, signal, sys
from pathlib import Path
from mstar.data.targets import TargetStore
from mstar.pretrain import targets_job
from mstar.pretrain.targets_teacher import Teacher
from support.target_inputs import TargetInputs

moment, root, out = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
write, compute = TargetStore.write, Teacher.__call__

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def dying_write(self, slide):
    written = write(self, slide)
    if moment == "a case is half written" and slide.slide_id == "c2-s1":
        die()
    if moment == "a case is written" and slide.slide_id == "c2-s2":
        die()
    return written

def dying_compute(self, features):
    tokens = compute(self, features)
    if moment == "a window is computed" and len(list(Path(out).rglob("*.h5"))) > 2:
        die()
    return tokens

TargetStore.write, Teacher.__call__ = dying_write, dying_compute
made = TargetInputs(cohort=root / "c", features=root / "f", aggregator=root / "a")
targets_job.run(made.config(out))
"""


class TestWhichCases:
    """Held-out cases get targets only when they are asked for, and then it is said."""

    @pytest.fixture
    def split(self, tmp_path: Path) -> TargetInputs:
        made = write_target_inputs(tmp_path / "in", SLIDES)
        with_registry(made, {"c1": "val", "c2": "test"})
        return made

    @pytest.mark.parametrize(
        ("cases", "absent"),
        [("pretraining", {"c1", "c2"}), ("pretraining-val", {"c2"}), ("all", set())],
    )
    def test_selection(
        self,
        cases: str,
        absent: set[str],
        split: TargetInputs,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        out = tmp_path / "out"
        assert targets_job.run(split.config(out, cases=cases)) == ExitCode.COMPLETE
        expected = {s for case, of in SLIDES.items() if case not in absent for s in of}
        assert done(out) == expected
        said = capsys.readouterr().err
        taken = 2 - len(absent)
        assert (f"{taken:,} of the cases are held out" in said) == (taken > 0)
        assert f"{len(absent)} held out" in said

    def test_the_registry_is_part_of_what_names_the_targets(
        self, split: TargetInputs, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        assert targets_job.run(split.config(out)) == ExitCode.COMPLETE
        record = TargetStore.open(str(out)).record.config["cases"]
        assert record["selected"] == "pretraining"
        assert len(record["splits"]) == 64
        with pytest.raises(StoreMismatchError, match=r"cases\.selected"):
            targets_job.run(split.config(out, cases="all"))

    def test_without_a_registry_all_cases_and_a_note(
        self, inputs: TargetInputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert targets_job.run(inputs.config(tmp_path)) == ExitCode.COMPLETE
        assert "no split registry" in capsys.readouterr().err

    def test_no_case_with_slides_is_an_error(self, tmp_path: Path) -> None:
        made = write_target_inputs(tmp_path / "in", {"c": {"s": 3}})
        cases = read_cases(str(made.cohort / "cases.csv"))
        write_cases(str(made.cohort / "cases.csv"), [replace(cases[0], slides=())])
        with pytest.raises(CohortError, match="cases with slides"):
            targets_job.run(made.config(tmp_path / "out"))


class TestRefused:
    """What would give wrong targets in silence."""

    def test_features_of_another_length(self, inputs: TargetInputs, tmp_path: Path) -> None:
        write_aggregator(tmp_path / "a", "x", dim=20)
        with pytest.raises(FeatureError, match="expected features of 20 numbers"):
            targets_job.run(inputs.config(tmp_path / "out", aggregator=str(tmp_path / "a")))
        assert not (tmp_path / "out").exists()

    def test_features_that_stage_1_did_not_see(
        self, inputs: TargetInputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_aggregator(tmp_path / "a", "0123456789abcdef")
        config = inputs.config(tmp_path / "out", aggregator=str(tmp_path / "a"))
        with pytest.raises(FeatureError, match="--allow-other-features"):
            targets_job.run(config)
        assert not (tmp_path / "out").exists()
        assert targets_job.run(replace(config, allow_other_features=True)) == ExitCode.COMPLETE
        assert "as you allowed" in capsys.readouterr().err

    def test_an_aggregator_that_does_not_say(self, inputs: TargetInputs, tmp_path: Path) -> None:
        write_aggregator(tmp_path / "a", "", bag=None)
        with pytest.raises(FeatureError, match="do not say on which"):
            targets_job.run(inputs.config(tmp_path / "out", aggregator=str(tmp_path / "a")))

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"coverage": "paper"}, "coverage"),
            ({"precision": "bfloat16"}, "precision"),
            ({"mode": "masked", "allow_change": True}, "aggregator.mode"),
        ],
    )
    def test_other_settings_into_the_same_store(
        self, change: dict[str, object], field: str, inputs: TargetInputs, tmp_path: Path
    ) -> None:
        assert targets_job.run(inputs.config(tmp_path)) == ExitCode.COMPLETE
        before = digests(tmp_path)
        with pytest.raises(StoreMismatchError, match=field):
            targets_job.run(inputs.config(tmp_path, **change))
        assert digests(tmp_path) == before

    def test_an_output_among_the_features(self, inputs: TargetInputs) -> None:
        for out in (inputs.features, inputs.features / "t"):
            with pytest.raises(ConfigError, match="outside the feature store"):
                targets_job.run(inputs.config(out))

    def test_a_disk_without_room(
        self, inputs: TargetInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(targets_survey, "free_bytes", lambda out: 1000)
        with pytest.raises(StorageError, match="room for"):
            targets_job.run(inputs.config(tmp_path))
        assert list(tmp_path.rglob("*.h5")) == []

    def test_a_gpu_where_there_is_none(self, inputs: TargetInputs, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="--device cpu"):
            targets_job.settle_device(inputs.config(tmp_path, device="cuda"), 0)


def test_failures_exit_codes_and_mended_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One case without features: the others are done; embedded at last, it needs no flag."""
    made = write_target_inputs(tmp_path / "in", SLIDES)
    (made.features / "c3-s0.h5").unlink()
    out = tmp_path / "out"
    assert targets_job.run(made.config(out)) == ExitCode.EXCLUSIONS
    assert "1 exclusions" in capsys.readouterr().out
    (failure,) = FailureLedger(f"{out}/targets/failures").all()
    assert (failure.slide_id, failure.permanent) == ("c3", True)
    assert len(done(out)) == NUM_SLIDES - 1
    assert targets_job.run(made.config(out, max_failures="1")) == ExitCode.COMPLETE
    assert "(0 by this run)" in capsys.readouterr().out  # not tried again
    store = FeatureStore.open_or_create(
        str(made.features), FeatureStore.open(str(made.features)).record.config
    )
    write_features(store, "c3-s0", features_of("c3-s0", 26))
    assert targets_job.run(made.config(out)) == ExitCode.COMPLETE
    assert "(1 by this run)" in capsys.readouterr().out
    assert len(done(out)) == NUM_SLIDES
    assert list(FailureLedger(f"{out}/targets/failures").all()) == []


def test_what_is_stored_is_what_the_aggregator_makes(inputs: TargetInputs, tmp_path: Path) -> None:
    """One small case by hand: all its patches in one bag, filled up to the size of stage 1's."""
    import numpy as np
    import torch

    assert targets_job.run(inputs.config(tmp_path)) == ExitCode.COMPLETE
    store = TargetStore.open(str(tmp_path))
    bag = torch.zeros(1, WINDOW, 12)
    bag[0, :5] = torch.from_numpy(features_of("c0-s0", 5)).float()
    with torch.no_grad():
        tokens = load_aggregator(str(inputs.aggregator))(
            bag, (torch.arange(WINDOW) < 5)[None]
        ).patches[0, :5]
    found = store.read("c0-s0", check="full")
    np.testing.assert_array_equal(found.targets, tokens.half().numpy())
    made = found.provenance
    assert (made.mode, made.attention, made.coverage, made.window) == (
        "public", "nystrom", "all", WINDOW
    )  # fmt: skip
    assert made.features_fingerprint == FeatureStore.open(str(inputs.features)).fingerprint
    assert (made.encoder, made.weights_sha256) == ("vit_tiny", "ab" * 32)


def test_dry_run_says_the_work_and_writes_nothing(
    inputs: TargetInputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert targets_job.run(inputs.config(out, dry_run=True)) == ExitCode.COMPLETE
    said = capsys.readouterr().out
    assert "6 of 6 cases to do" in said
    assert "GB to write" in said
    assert "GB free" in said
    assert not out.exists()


def test_the_work_is_told_from_file_sizes(inputs: TargetInputs, tmp_path: Path) -> None:
    """Patches to within what page alignment hides: 4 KiB a file and dataset."""
    found = targets_survey.survey(inputs.config(tmp_path))
    exact = [sum(of_case.values()) for of_case in SLIDES.values()]
    row_bytes = 2 * 12 + 16
    for case, num in zip(found.cases, exact, strict=True):
        assert abs(case.num_patches - num) <= 2 * 4096 / row_bytes * len(case.slides)


class TestShards:
    """The second half follows the first one, with the same settings, unless it is left out."""

    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[ShardsConfig]:
        asked: list[ShardsConfig] = []

        def write(config: ShardsConfig) -> int:
            asked.append(config)
            return ExitCode.COMPLETE

        monkeypatch.setattr(targets_job, "write_shards", write)
        return asked

    def test_they_follow(
        self, inputs: TargetInputs, tmp_path: Path, asked: list[ShardsConfig]
    ) -> None:
        config = inputs.config(tmp_path, shards=True, shard=ShardSettings(quality=90))
        assert targets_job.run(config) == ExitCode.COMPLETE
        (given,) = asked
        assert (given.cohort, given.features, given.out) == (
            config.cohort, config.features, config.out
        )  # fmt: skip
        assert given.shard.quality == 90
        assert (given.run.workers, given.run.device, given.run.tracking) == (0, "cpu", False)

    def test_not_of_a_cohort_that_failed(
        self, tmp_path: Path, asked: list[ShardsConfig], capsys: pytest.CaptureFixture[str]
    ) -> None:
        made = write_target_inputs(tmp_path / "in", {"a": {"a1": 3}, "b": {"b1": 3}})
        (made.features / "a1.h5").unlink()
        config = made.config(tmp_path / "out", shards=True)
        assert targets_job.run(config) == ExitCode.EXCLUSIONS
        assert asked == []
        assert "no shards" in capsys.readouterr().out
        allowed = replace(config, run=replace(config.run, max_failures="50%"))
        assert targets_job.run(allowed) == ExitCode.COMPLETE
        assert len(asked) == 1


def test_recipes() -> None:
    """Full coverage by default, the paper's by name; both as large as stage 1's bags."""
    parts = JobParts(recipes=recipes.RECIPES, default=recipes.DEFAULT)
    canonical = ["--cohort", "C", "--features", "F", "--aggregator", "A", "--out", "T"]
    coverage = {}
    for name in ("", *recipes.RECIPES):
        config = resolve("targets", [*([name] if name else []), *canonical], parts)
        coverage[name] = (config.coverage, config.run.workers)
        assert (config.cohort, config.out, config.window) == ("C", "T", None)
        assert config.cases == "pretraining"
        assert config.precision == "float32"
    assert coverage == {
        "": ("all", None),
        "all_116m": ("all", None),
        "paper_39m": ("paper", None),
        "laptop": ("all", 0),
    }


@pytest.mark.slow
def test_the_run_is_in_mlflow(
    inputs: TargetInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert targets_job.run(inputs.config(tmp_path, tracking=True)) == ExitCode.COMPLETE
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("targets")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["coverage"] == "all"
    assert run.data.tags["encoder"] == "vit_tiny"
    assert run.data.tags["targets_fingerprint"] == TargetStore.open(str(tmp_path)).fingerprint
    assert run.data.metrics["cases_done"] == len(SLIDES)
    names = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"config.json", "failures.tsv", "summary.txt"} <= names


@pytest.mark.slow
def test_from_and_to_an_object_store(
    inputs: TargetInputs, undisturbed: dict[str, str], tmp_path: Path, s3_server: str
) -> None:
    """Features staged from S3, targets written to S3: the same files but for the addresses."""
    from mstar.storage import objects
    from support.s3 import make_bucket

    bucket = make_bucket("targets")
    for path in inputs.features.rglob("*"):
        if path.is_file():
            objects.put_file(path, f"{bucket}/f/{path.relative_to(inputs.features)}")
    config = inputs.config(f"{bucket}/t", features=f"{bucket}/f", cache_dir=str(tmp_path / "cache"))
    assert targets_job.run(config) == ExitCode.COMPLETE
    for info in objects.list_files(f"{bucket}/t", suffix=".h5"):
        local = tmp_path / "targets" / info.rel.removeprefix("targets/")
        local.parent.mkdir(parents=True, exist_ok=True)
        local.write_bytes(objects.read_bytes(info.uri))
    record = objects.read_bytes(f"{bucket}/t/targets/targets.json")
    (tmp_path / "targets" / "targets.json").write_bytes(record)
    assert digests(tmp_path) == undisturbed
    assert targets_job.run(config) == ExitCode.COMPLETE


@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_actor(
    inputs: TargetInputs, undisturbed: dict[str, str], tmp_path: Path, local_ray: None
) -> None:
    """`kill -9` of the worker as soon as a slide is done: Ray starts another, same bytes."""
    import signal
    import threading
    import time

    from support.cohorts import ray_processes

    kills: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set() and not kills:
            if list(tmp_path.glob("targets/*.h5")):
                for pid in ray_processes("TargetsActor"):
                    os.kill(pid, signal.SIGKILL)
                    kills.append(pid)
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        code = targets_job.run(inputs.config(tmp_path, workers=1, bundle_windows=1))
    finally:
        over.set()
        thread.join()
    assert code == ExitCode.COMPLETE
    assert kills, "the job ended before anything was killed"
    assert digests(tmp_path) == undisturbed
