"""Stage 1 killed, stopped and resumed: the rest of the run is what it would have been."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mstar.cli.main import main
from mstar.data.cases import read_cases
from mstar.data.reports import Report, read_reports, write_reports
from mstar.data.splits.registry import (
    SplitRegistry,
    SplitRow,
    cases_digest,
    has_registry,
    read_registry,
    write_registry,
)
from mstar.models.exports import read_export
from mstar.pretrain import stage1_export
from mstar.training.exit_codes import ExitCode
from mstar.training.run_log import RunLog, read_steps
from mstar.training.sessions import STATE_FILE
from support.stage1_inputs import Stage1Inputs, losses_of, stage1_args, write_stage1_inputs
from support.threads import one_thread

FLAGS = ("--epochs", "4")  # of four steps each
SHORT = ("--epochs", "2")
KINDS = ("aggregator", "text_encoder", "gene_encoder")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As the killed process has: more threads add in another order."""
    with one_thread():
        yield


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take as long as several steps."""
    monkeypatch.setattr(stage1_export, "curves", lambda *_: None)
    monkeypatch.setattr(stage1_export, "retrieval_matrix", lambda *_: None)


@pytest.fixture(autouse=True)
def _own_signals() -> object:
    """`main` takes SIGTERM for itself; give it back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Stage1Inputs:
    return write_stage1_inputs(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def whole(inputs: Stage1Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main(stage1_args(inputs, out, *FLAGS)) == ExitCode.COMPLETE
    return out


def assert_same_run(out: Path, whole: Path) -> None:
    """Losses, validations, exported weights and curves equal those of the undisturbed run."""
    assert losses_of(out) == losses_of(whole)
    assert validations(out) == validations(whole)
    for kind in KINDS:
        ours, theirs = (read_export(str(folder), kind) for folder in (out, whole))
        assert ours.record["provenance"]["step"] == theirs.record["provenance"]["step"]
        assert all((ours.tensors[k] == v).all() for k, v in theirs.tensors.items())
    facts, expected = (json.loads((f / "stage1.json").read_text()) for f in (out, whole))
    for name in ("step", "steps_done", "validation", "retrieval", "inputs", "complete"):
        assert facts[name] == expected[name], name


def validations(out: Path) -> dict[int, dict[str, float]]:
    rows = (row for row in read_steps(out / "steps.jsonl") if "loss" not in row)
    return {row.pop("step"): {k: v for k, v in row.items() if k != "pid"} for row in rows}


def started(inputs: Stage1Inputs, out: Path) -> subprocess.Popen[bytes]:
    """The run in a process of its own, with one thread as well."""
    command = [sys.executable, "-m", "mstar.cli.main", *stage1_args(inputs, out, *FLAGS)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, env=env)


def wait_for_step(out: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + 120
    while time.monotonic() < deadline_s:
        if any(row["step"] >= step for row in read_steps(out / "steps.jsonl")):
            return
        assert process.poll() is None, "it ended by itself"
        time.sleep(0.002)
    raise AssertionError(f"no step {step} within two minutes")


def test_killed_at_a_random_step_and_resumed_it_computes_the_same(
    inputs: Stage1Inputs, whole: Path, tmp_path: Path
) -> None:
    out, step = tmp_path / "out", random.SystemRandom().randint(1, 13)
    with started(inputs, out) as process:
        wait_for_step(out, step, process)
        process.kill()
    reached = max(losses_of_torn(out))
    assert reached < 16, f"killed at step {step}, it was through already"
    assert main(stage1_args(inputs, out, *FLAGS)) == ExitCode.COMPLETE
    if reached >= 8:  # the one of step 4 was complete then
        assert "resumed at step" in (out / "log.txt").read_text()
    assert_same_run(out, whole)
    assert len({row["pid"] for row in read_steps(out / "steps.jsonl")}) == 2


def losses_of_torn(out: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_steps(out / "steps.jsonl") if "loss" in r}


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_asked_to_stop_it_ends_with_130_and_goes_on_later(
    inputs: Stage1Inputs,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asked: signal.Signals,
) -> None:
    out, append = tmp_path / "out", RunLog.append
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it

    def stop_at_ten(self: RunLog, step: int, metrics: dict[str, float]) -> None:
        append(self, step, metrics)
        if step == 10:
            os.kill(os.getpid(), asked)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "append", stop_at_ten)
        try:
            assert main(stage1_args(inputs, out, *FLAGS)) == ExitCode.INTERRUPTED
        finally:
            signal.signal(signal.SIGINT, before)
    assert "interrupted" in capsys.readouterr().err
    assert max(losses_of(out)) == 10
    assert not json.loads((out / "stage1.json").read_text())["complete"]
    assert main(stage1_args(inputs, out, *FLAGS)) == ExitCode.COMPLETE
    assert "resumed at step 8" in (out / "log.txt").read_text()
    assert_same_run(out, whole)


def stopped_after(
    inputs: Stage1Inputs, out: Path, step: int, monkeypatch: pytest.MonkeyPatch, *flags: str
) -> None:
    """A run that was interrupted right after a step, with the checkpoints it had by then."""
    append = RunLog.append

    def stop(self: RunLog, done: int, metrics: dict[str, float]) -> None:
        append(self, done, metrics)
        if done == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "append", stop)
        assert main(stage1_args(inputs, out, *flags)) == ExitCode.INTERRUPTED


def test_a_checkpoint_of_two_workers_goes_on_with_one_and_says_what_changed(
    inputs: Stage1Inputs, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a run under Ray: its checkpoints lie elsewhere, and their state says two ranks."""
    out = tmp_path / "out"
    stopped_after(inputs, out, 10, monkeypatch, *FLAGS)
    fingerprint = json.loads((out / "stage1.json").read_text())["fingerprint"]
    (out / "checkpoints/alone").rename(out / f"checkpoints/stage1-{fingerprint}")
    for path in (out / "checkpoints").rglob(STATE_FILE):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"world_size": 2}))
    assert main(stage1_args(inputs, out, *FLAGS)) == ExitCode.COMPLETE
    said = (out / "log.txt").read_text()
    assert "resumed at step 8" in said
    assert "workers changed from 2 to 1" in said
    assert_same_run(out, whole)
    assert (out / f"checkpoints/stage1-{fingerprint}").exists(), "what Ray keeps is left alone"


def test_another_precision_or_chunk_size_is_allowed_and_said(
    inputs: Stage1Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    stopped_after(inputs, out, 5, monkeypatch, *SHORT)
    flags = (*SHORT, "--precision", "bf16", "--chunk-cases", "5")
    assert main(stage1_args(inputs, out, *flags)) == ExitCode.COMPLETE
    assert "engine changed: precision: was 'fp32', is 'bf16'" in (out / "log.txt").read_text()


def registered(inputs: Stage1Inputs, folder: Path, *, val: int) -> Stage1Inputs:
    """The cohort with a split registry: every fifth case, from `val` on, validates."""
    shutil.copytree(inputs.cohort, folder, dirs_exist_ok=True)
    cases = read_cases(str(folder / "cases.csv"))
    rows = tuple(
        SplitRow(
            case_id=case.case_id,
            cohort=case.cancer_type,
            part="val" if number % 5 == val else "train",
            pretraining=number % 5 != val,
        )
        for number, case in enumerate(cases)
    )
    digest = cases_digest(cases)
    registry = SplitRegistry(name="planted", seed=val, rows=rows, cases_digest=digest)
    before = read_registry(str(folder)).digest if has_registry(str(folder)) else ""
    write_registry(str(folder), registry, replace=before)
    return Stage1Inputs(cohort=folder, features=inputs.features, text=inputs.text)


def test_other_splits_or_reports_than_before_are_refused(
    inputs: Stage1Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    split, out = registered(inputs, tmp_path / "c", val=3), tmp_path / "out"
    stopped_after(split, out, 5, monkeypatch, *SHORT)
    before = losses_of(out)
    registered(inputs, tmp_path / "c", val=4)
    assert main(stage1_args(split, out, *SHORT)) == ExitCode.FAILED
    said = capsys.readouterr().err
    assert "has changed since its checkpoint" in said
    assert "splits: expected '" in said
    assert "Put the former cases, splits back" in said
    registered(inputs, tmp_path / "c", val=3)
    uri = str(tmp_path / "c" / "reports.csv")
    kept = dict(read_reports(uri))
    changed = dict(kept) | {next(iter(kept)): Report(text="tumour0")}
    write_reports(uri, changed)
    assert main(stage1_args(split, out, *SHORT)) == ExitCode.FAILED
    assert "Put the former reports back" in capsys.readouterr().err
    assert losses_of(out) == before
    write_reports(uri, kept)
    assert main(stage1_args(split, out, *SHORT)) == ExitCode.COMPLETE, "the former ones are back"


def test_the_same_data_elsewhere_is_the_same_run(
    inputs: Stage1Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    stopped_after(inputs, out, 5, monkeypatch, *SHORT)
    shutil.copytree(inputs.cohort, tmp_path / "moved")
    moved = Stage1Inputs(cohort=tmp_path / "moved", features=inputs.features, text=inputs.text)
    assert main(stage1_args(moved, out, *SHORT)) == ExitCode.COMPLETE


def test_the_log_of_steps_outlives_a_line_that_was_never_finished(tmp_path: Path) -> None:
    first = RunLog(str(tmp_path))
    first.append(1, {"loss": 3.0})
    first.append(2, {"loss": 2.0})
    with (tmp_path / "steps.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    again = RunLog(str(tmp_path))
    again.append(2, {"loss": 2.5})
    again.append(2, {"val.x": 1.0})
    again.append(3, {"loss": 1.0})
    assert [(r["step"], r.get("loss")) for r in again.history(3)] == [
        (1, 3.0),
        (2, 2.5),
        (2, None),
        (3, 1.0),
    ]
    assert [row["step"] for row in again.history(1)] == [1]


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 4, 9])
def test_killed_at_any_step(inputs: Stage1Inputs, whole: Path, tmp_path: Path, step: int) -> None:
    out = tmp_path / "out"
    for kill_at in (step, step + 4):  # twice in a row
        with started(inputs, out) as process:
            wait_for_step(out, kill_at, process)
            process.kill()
    assert main(stage1_args(inputs, out, *FLAGS)) == ExitCode.COMPLETE
    assert_same_run(out, whole)
