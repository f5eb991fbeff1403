"""The jobs that chaos befalls: their small inputs, how to start them, and what they leave.

Inputs lie in one folder, on a disk or copied to an object store; every job runs as a process of its
own with the command that a user would give.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
from safetensors.torch import load_file

from mstar.data.cases import Case, write_cases
from mstar.features.store import FeatureStore
from mstar.storage import objects
from mstar.training.run_log import read_steps
from support.chaos_cluster import descendants, python_path
from support.cohorts import write_cohort
from support.planted_sweep import EASY, RISK, plant
from support.shard_inputs import KINDS, WEIGHTS, write_shard_inputs
from support.small_encoder import DIM
from support.stage1_inputs import Stage1Inputs, stage1_args, write_stage1_inputs
from support.stage2_runs import write_stage2_shards
from support.target_inputs import write_aggregator

MAIN = ("-m", "mstar.cli.main")
Result = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where a job finds its inputs and leaves its output; either may be s3://.

    notes: a local folder for what the test wants to know besides. workers: on Ray; 0 without it.
    models: local folder of what cannot be read from s3://.
    """

    inputs: str
    out: str
    notes: Path
    workers: int = 2
    models: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosJob:
    """One job.

    prepare: writes its inputs into a folder. command: of Python. progress: how much of the work is
    done, by what an output holds; the middle is reached at `middle`. result: what must be equal to
    an undisturbed run. worker: part of the name of its workers under Ray. loss_rtol: how near the
    losses of two ranks are to those of one; 0 where nothing is added up over workers.
    """

    name: str
    prepare: Callable[[Path], object]
    command: Callable[[Places], Sequence[str]]
    progress: Callable[[str], int]
    middle: int = 1
    result: Callable[[Path, Path], Result]
    worker: str
    loss_rtol: float = 0.0


class Running:
    """A job at work; its words are kept in a file.

    started: those that the tests' fixture (`tests/chaos/conftest.py`) has not ended yet.
    """

    started: ClassVar[list[Running]] = []

    def __init__(
        self, job: ChaosJob, places: Places, *, env: Mapping[str, str], prefix: Sequence[str] = ()
    ) -> None:
        """Start it."""
        places.notes.mkdir(parents=True, exist_ok=True)
        self._job, self._out = job, places.out
        self._log = places.notes / f"log-{time.time_ns()}"
        dropped = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
        environment = {k: v for k, v in os.environ.items() if k not in dropped}
        environment |= {"PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
        environment |= {"MSTAR_STATE": str(places.notes / "state")}
        environment |= {"MSTAR_CACHE_DIR": str(places.notes / "cache"), **env}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, *job.command(places)],
                env=environment,
                stdout=log,
                stderr=log,
            )
        self.started.append(self)

    @property
    def said(self) -> str:
        """What it has said so far."""
        return self._log.read_text(errors="replace")

    def wait_for_the_middle(self, *, timeout_s: float = 400.0, out: str = "") -> None:
        """Until some of its work is done, and some is not."""
        deadline_s = time.monotonic() + timeout_s
        while self._job.progress(out or self._out) < self._job.middle:
            assert self.process.poll() is None, f"it ended before its middle:\n{self.tail}"
            assert time.monotonic() < deadline_s, f"nothing done:\n{self.tail}"
            time.sleep(0.02)
        assert self.process.poll() is None, f"it ended before anything befell it:\n{self.tail}"

    def end(self, *, timeout_s: float = 700.0) -> int:
        """Its exit code."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"not at its end after {timeout_s:g} s:\n{self.tail}") from None

    def kill(self) -> None:
        """End it and all that it has started, at once; nothing happens when it has ended."""
        if self.process.poll() is not None:
            return
        for pid in descendants(self.process.pid):
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue
        self.process.wait()

    @property
    def tail(self) -> str:
        """The last of what it said."""
        return self.said[-4000:]


def files(pattern: str) -> Callable[[str], int]:
    """Counts the files below a folder that a pattern matches; `*` does not cross a slash."""
    depth = pattern.count("/")

    def count(root: str) -> int:
        names = (info.rel for info in objects.list_files(root))
        return sum(n.count("/") == depth and fnmatch.fnmatch(n, pattern) for n in names)

    return count


def upload(folder: Path, uri: str) -> None:
    """Copy a folder to an object store."""
    for path in folder.rglob("*"):
        if path.is_file():
            objects.put_file(path, objects.join(uri, path.relative_to(folder).as_posix()))


def results_of(job: ChaosJob, places: Places) -> Result:
    """What a finished job has left."""
    if objects.is_local(places.out):
        return job.result(Path(places.out), places.notes)
    with tempfile.TemporaryDirectory() as folder:
        for info in objects.list_files(places.out):
            if not info.rel.startswith("checkpoints/"):
                target = Path(folder) / info.rel
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(objects.read_bytes(info.uri))
        return job.result(Path(folder), places.notes)


def assert_same(job: ChaosJob, found: Result, expected: Result) -> None:
    """Files to the last bit; losses within the tolerance where other ranks have added them up."""
    if job.loss_rtol:
        losses, wanted = found["losses"], expected["losses"]
        assert losses.keys() == wanted.keys()
        np.testing.assert_allclose(
            [losses[step] for step in wanted], list(wanted.values()), rtol=job.loss_rtol
        )
        assert found.get("patches") == expected.get("patches")
    else:
        assert found == expected


def digests(folder: Path, *patterns: str) -> Result:
    """Name → sha256 of files."""
    found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    assert found, f"nothing like {patterns} in {folder}"
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in found
    }


def tensors(folder: Path) -> Result:
    """File and name → sha256 of every tensor; what the files say of the run besides may differ."""
    found = {
        f"{path.name} {name}": hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }
    assert found, f"no weights in {folder}"
    return found


# ------------------------------------------------------------------------------------- embed


def _embed(places: Places) -> list[str]:
    where = ["--slides", f"{places.inputs}/slides", "--out", places.out]
    more = ["--batch-size", "4", "--bundle-batches", "2", "--no-tracking"]
    more += ["--workers", str(places.workers or 1), "--cpus-per-worker", "1", "--lease-s", "5"]
    return [*MAIN, "embed", "debug", *where, *more]


# ------------------------------------------------------------------------------------ stage 1


def _prepare_stage1(folder: Path) -> None:
    """A cohort, and a report encoder without dropout, which every rank would draw otherwise."""
    made = write_stage1_inputs(folder)
    config = json.loads((made.text / "config.json").read_text())
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (made.text / "config.json").write_text(json.dumps(config | off))


def _stage1(places: Places) -> list[str]:
    inputs: Any = Stage1Inputs(
        cohort=f"{places.inputs}/c",  # type: ignore[arg-type]  # may be s3://
        features=f"{places.inputs}/f",  # type: ignore[arg-type]
        text=f"{places.models or places.inputs}/bert",  # type: ignore[arg-type]
    )
    flags = ["--epochs", "24"]  # a few seconds of work after the middle
    flags += ["--aggregator.input-dropout", "0", "--aggregator.attention-dropout", "0"]
    if places.workers:
        flags += ["--workers", str(places.workers), "--engine", "deepspeed", "--zero-stage", "2"]
    return [*MAIN, *stage1_args(inputs, places.out, *flags)]


def _losses(out: Path) -> dict[str, float]:
    return {str(r["step"]): r["loss"] for r in read_steps(out / "steps.jsonl") if "loss" in r}


def _stage1_result(out: Path, notes: Path) -> Result:
    assert json.loads((out / "stage1.json").read_text())["complete"]
    return {"losses": _losses(out), "weights": tensors(out)}


# ------------------------------------------------------------------------- targets and shards


def _prepare_targets(folder: Path) -> None:
    """Slides, their features, and an aggregator that was trained on them."""
    write_shard_inputs(folder)
    cases: dict[str, list[str]] = {}
    for number, kind in enumerate(KINDS):
        cases.setdefault(f"case-{number % 2}", []).append(kind)
    write_cases(
        str(folder / "C" / "cases.csv"),
        [Case(case_id=k, cancer_type="LUAD", slides=tuple(v)) for k, v in cases.items()],
    )
    store = FeatureStore.open(str(folder / "F"))
    write_aggregator(folder / "A", store.fingerprint, dim=DIM)


def _targets(places: Places) -> list[str]:
    names = {"cohort": "C", "features": "F", "aggregator": "A"}
    where = [w for k, v in names.items() for w in (f"--{k}", f"{places.inputs}/{v}")]
    more = ["--workers", str(places.workers), "--bundle-windows", "1", "--no-tracking"]
    more += ["--lease-s", "5", "--shard.weights", WEIGHTS, "--shard.rows-per-group", "4"]
    more += ["--shard.shard-mb", "1", "--shard.memory-mb", "4", "--shard.sample-patches", "32"]
    command = [*MAIN, "targets", "laptop", *where, "--out", places.out, *more]
    return ["-m", "support.chaos_small_units", *command[2:]]


def _targets_result(out: Path, notes: Path) -> Result:
    return digests(out, "targets/*.h5", "shards/*.parquet", "shards/*.json")


# ------------------------------------------------------------------------------------ stage 2


def _stage2(places: Places) -> list[str]:
    flags = ["--shards", f"{places.inputs}/T", "--weights", "random:0", "--out", places.out]
    flags += ["--epochs", "4", "--batch-patches", "24", "--lanes", "8", "--no-tracking"]
    flags += ["--checkpoint-every-steps", "3", "--watch-every-steps", "0", "--probe-patches", "24"]
    if places.workers:
        flags += ["--workers", str(places.workers), "--engine", "deepspeed"]
        flags += ["--micro-batch", str(24 // places.workers)]
    return ["-m", "support.chaos_stage2", str(places.notes), "stage2", "laptop", *flags]


def _stage2_result(out: Path, notes: Path) -> Result:
    from support.chaos_stage2 import trained_patches

    facts = json.loads((out / "stage2.json").read_text())
    assert facts["complete"]
    ids = {str(step): sorted(found) for step, found in trained_patches(notes).items()}
    return {"losses": _losses(out), "weights": tensors(out), "patches": ids}


# -------------------------------------------------------------------------------------- sweep


def _journal_lines(out: str) -> int:
    if not objects.is_local(out):
        return files("journal/*.jsonl")(out)
    path = Path(out, "journal.jsonl")
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _prepare_sweep(folder: Path) -> None:
    plant(folder, (EASY, RISK))


def _sweep(places: Places) -> list[str]:
    at = places.inputs
    settings = {
        "labels": f"{at}/labels",
        "features": [f"enc={at}/enc"],
        "own": [f"{at}/tasks.csv"],
        "tasks": ["easy", "risk"],
        "heads": ["linear", "abmil"],
        "space": "quick",
        "cache_dir": str(places.notes / "bags"),
        "out": places.out,
        "tracking": False,
        "figures": False,
        "max_parallel": 2,
    }
    return ["-m", "support.sweep_driver", json.dumps(settings)]


def _predictions(out: Path, notes: Path) -> Result:
    """Every row, and what the files say of themselves but for where the inputs were."""
    found = {}
    for path in sorted(out.glob("**/predictions-*.parquet")):
        table = pq.read_table(path)
        facts = json.loads(table.schema.metadata[b"mstar"])
        for name in ("label_source", "split_source"):
            del facts["extra"][name]
        found[str(path.relative_to(out))] = {"facts": facts, "rows": table.to_pylist()}
    assert found, f"no predictions in {out}"
    return found


JOBS = {
    job.name: job
    for job in (
        ChaosJob(
            name="embed",
            prepare=lambda folder: write_cohort(folder / "slides", num_slides=8),
            command=_embed,
            progress=files("*.h5"),
            result=lambda out, notes: digests(out, "*.h5"),
            worker="BundleActor",
        ),
        ChaosJob(
            name="stage1",
            prepare=_prepare_stage1,
            command=_stage1,
            progress=files("checkpoints/*/*/train_state.json"),
            result=_stage1_result,
            worker="RayTrainWorker",
            loss_rtol=2e-4,
        ),
        ChaosJob(
            name="targets",
            prepare=_prepare_targets,
            command=_targets,
            progress=files("targets/*.h5"),
            result=_targets_result,
            worker="Actor)",
        ),
        ChaosJob(
            name="stage2",
            prepare=lambda folder: write_stage2_shards(folder / "T" / "shards"),
            command=_stage2,
            progress=files("checkpoints/*/*/train_state.json"),
            result=_stage2_result,
            worker="RayTrainWorker",
            loss_rtol=1e-4,
        ),
        ChaosJob(
            name="sweep",
            prepare=_prepare_sweep,
            command=_sweep,
            progress=_journal_lines,
            middle=3,
            result=_predictions,
            worker="_Trial",
        ),
    )
}
