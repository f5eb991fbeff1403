"""`mstar targets`: the same bytes however it ran, killed or not, and only what is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mstar.data.targets import TargetStore
from mstar.pretrain import targets_job
from mstar.training.exit_codes import ExitCode
from support.target_inputs import (
    NUM_SLIDES,
    SLIDES,
    TargetInputs,
    digests,
    done,
    write_target_inputs,
)


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
