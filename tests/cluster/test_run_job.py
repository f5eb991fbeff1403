"""run-job, the entry point of RayJobs: what is run again, what is not, and how it is stopped."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from mstar.training.exit_codes import ExitCode
from support.manifests import CLUSTER

RUN_JOB = str(CLUSTER / "bin" / "run-job")


def environment(folder: Path, script: str) -> dict[str, str]:
    """An environment whose `mstar` is a script that counts its calls in `calls`."""
    fake = folder / "mstar"
    fake.write_text(f'#!/bin/bash\necho "$@" >> {folder}/calls\n{script}\n')
    fake.chmod(0o755)
    retries = {"RUN_JOB_RETRIES": "2", "RUN_JOB_PAUSE_S": "0"}
    return os.environ | retries | {"PATH": f"{folder}:{os.environ['PATH']}"}


def run(folder: Path, script: str) -> tuple[int, list[str]]:
    """The exit code, and the calls of `mstar`."""
    done = subprocess.run(
        [RUN_JOB, "embed", "--out", "a b"],
        env=environment(folder, script),
        capture_output=True,
        timeout=60,
    )
    return done.returncode, (folder / "calls").read_text().splitlines()


@pytest.mark.parametrize(
    "code", [ExitCode.COMPLETE, ExitCode.USAGE, ExitCode.EXCLUSIONS, ExitCode.INTERRUPTED]
)
def test_what_a_rerun_cannot_mend_is_handed_on(tmp_path: Path, code: int) -> None:
    assert run(tmp_path, f"exit {code}") == (code, ["embed --out a b"])


@pytest.mark.parametrize("code", [ExitCode.FAILED, 137])
def test_what_it_may_mend_is_run_again(tmp_path: Path, code: int) -> None:
    """As often as RUN_JOB_RETRIES says, then the code is handed on."""
    assert run(tmp_path, f"exit {code}") == (code, ["embed --out a b"] * 3)


def test_a_rerun_that_completes_counts(tmp_path: Path) -> None:
    code, calls = run(tmp_path, f"[ $(wc -l < {tmp_path}/calls) -ge 2 ] && exit 3; kill -9 $$")
    assert (code, len(calls)) == (ExitCode.EXCLUSIONS, 2)


def test_sigterm_reaches_the_job_and_ends_it(tmp_path: Path) -> None:
    """The job has the time it needs to save; then it is not run again, whatever its code."""
    script = f"trap 'sleep 0.5; touch {tmp_path}/saved; exit 1' TERM; touch {tmp_path}/up; "
    script += "for i in $(seq 300); do sleep 0.1; done"
    process = subprocess.Popen([RUN_JOB, "stage1"], env=environment(tmp_path, script))
    wait_for(tmp_path / "up")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 1
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "calls").read_text().splitlines() == ["stage1"]


def test_sigterm_between_two_tries_ends_it(tmp_path: Path) -> None:
    env = environment(tmp_path, "exit 1") | {"RUN_JOB_PAUSE_S": "600"}
    process = subprocess.Popen([RUN_JOB, "stage1"], env=env, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "again in 600 s" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == ExitCode.INTERRUPTED
    process.stderr.close()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
