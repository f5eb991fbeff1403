"""Stage 1 with other settings: fewer modalities or losses, a split, MLflow, S3; what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mstar.cli.main import main
from mstar.data.cases import read_cases
from mstar.data.splits.registry import SplitRegistry, SplitRow, cases_digest, write_registry
from mstar.models.stage1_files import load_aggregator, load_gene_encoder, load_text_encoder
from mstar.pretrain import stage1_export
from mstar.pretrain.stage1_batches import CaseInputs
from mstar.training.exit_codes import ExitCode
from support.stage1_inputs import (
    Stage1Inputs,
    facts_of,
    losses_of,
    stage1_args,
    write_stage1_inputs,
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Stage1Inputs:
    """A cohort of 60 cases, of which 15 or so are held out by the job itself."""
    return write_stage1_inputs(tmp_path_factory.mktemp("stage1"))


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take half of the time of such short runs."""
    monkeypatch.setattr(stage1_export, "curves", lambda *_: None)
    monkeypatch.setattr(stage1_export, "retrieval_matrix", lambda *_: None)


@pytest.mark.usefixtures("no_pictures")
def test_nothing_of_transformers_is_on_the_screen(
    inputs: Stage1Inputs, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    main(stage1_args(inputs, tmp_path / "out", "--epochs", "1"))
    said = "".join(capfd.readouterr())
    assert "Loading weights" not in said
    assert "LOAD REPORT" not in said


@pytest.mark.usefixtures("no_pictures")
def test_two_modalities_alone_train_and_are_reported(
    inputs: Stage1Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = ("--modalities", "wsi,text", "--epochs", "1")
    assert main(stage1_args(inputs, out, *flags)) == ExitCode.COMPLETE
    assert "trained without RNA (--modalities wsi,text)" in capsys.readouterr().out
    assert not (out / "gene_encoder.safetensors").exists()
    facts = facts_of(out)
    assert set(facts["retrieval"]) == {"wsi_to_text", "text_to_wsi"}
    assert facts["cases_with_too_few_modalities"] == 12, "those without slides, without report"
    first = json.loads((out / "steps.jsonl").read_text().splitlines()[0])
    assert {name for name in first if name.startswith("loss.")} == {"loss.wsi_text", "loss.triplet"}


@pytest.mark.usefixtures("no_pictures")
def test_without_the_triplet_loss_it_trains_and_is_reported(
    inputs: Stage1Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = ("--loss.triplet-weight", "0", "--epochs", "1")
    assert main(stage1_args(inputs, out, *flags)) == ExitCode.COMPLETE
    assert "without these losses (weight 0): triplet" in capsys.readouterr().out
    first = json.loads((out / "steps.jsonl").read_text().splitlines()[0])
    parts = {name for name in first if name.startswith("loss.")}
    assert parts == {"loss.wsi_text", "loss.wsi_gene", "loss.text_gene"}
    assert first["loss"] == pytest.approx(sum(first[name] for name in parts))


@pytest.mark.usefixtures("no_pictures")
def test_without_validation_cases_the_last_step_is_exported_and_said(
    inputs: Stage1Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(stage1_args(inputs, out, "--val-fraction", "0")) == ExitCode.COMPLETE
    said = capsys.readouterr().out
    assert "chosen by: none: the last step" in said
    assert "nothing was measured" in said
    assert facts_of(out)["step"] == facts_of(out)["steps"] > 0
    load_aggregator(str(out))


def write_split(inputs: Stage1Inputs, cohort: Path, *, swap: bool = False) -> SplitRegistry:
    """A copy of the cohort with a registry: cases by their number to train, val, test or none."""
    shutil.copytree(inputs.cohort, cohort, dirs_exist_ok=True)
    cases = read_cases(str(cohort / "cases.csv"))
    parts = ("train", "", "test", "train", "val") if swap else ("train", "", "val", "train", "test")
    rows = tuple(
        SplitRow(
            case_id=case.case_id,
            cohort=case.cancer_type,
            part=parts[number % 5],
            pretraining=parts[number % 5] in ("train", ""),
        )
        for number, case in enumerate(cases)
    )
    digest = cases_digest(cases)
    registry = SplitRegistry(name="planted", seed=0, rows=rows, cases_digest=digest)
    write_registry(str(cohort), registry)
    return registry


@pytest.mark.usefixtures("no_pictures")
def test_held_out_cases_are_in_no_batch(
    inputs: Stage1Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = write_split(inputs, tmp_path / "c")
    seen: dict[bool, set[str]] = {True: set(), False: set()}
    read = CaseInputs.chunk

    def spy(self: CaseInputs, cases: Any, *, epoch: int, training: bool) -> Any:
        seen[training] |= {one.case.case_id for one in cases}
        return read(self, cases, epoch=epoch, training=training)

    monkeypatch.setattr(CaseInputs, "chunk", spy)
    split = Stage1Inputs(cohort=tmp_path / "c", features=inputs.features, text=inputs.text)
    assert main(stage1_args(split, tmp_path / "out")) == ExitCode.COMPLETE
    part_of = {row.case_id: row.part for row in registry.rows}
    assert seen[True] == registry.pretraining
    assert {part_of[case_id] for case_id in seen[False]} == {"val"}
    facts = facts_of(tmp_path / "out")
    assert facts["held_out_cases"] == sum(part == "test" for part in part_of.values())
    assert facts["inputs"]["splits"] == registry.digest


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--select-on", "loss"), "--select-on 'loss': expected mean_recall_at_10"),
        (("--val-fraction", "1"), "--val-fraction 1.0: expected a share"),
        (("--modalities", "wsi"), "expected two or three of"),
        (("--batch-cases", "0"), "--batch-cases 0: expected at least 1"),
        (("--min-pairs", "30"), "Raise --batch-cases, lower --min-pairs"),
        (
            (
                "--modalities",
                "wsi,text",
                "--loss.triplet-weight",
                "0",
                "--loss.wsi-text-weight",
                "0",
            ),
            "every loss of wsi,text has the weight 0",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(
    inputs: Stage1Inputs,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    said: str,
) -> None:
    assert main(stage1_args(inputs, tmp_path / "out", *flags)) != ExitCode.COMPLETE
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "steps.jsonl").exists()


@pytest.mark.slow
def test_mlflow_has_the_whole_run(
    inputs: Stage1Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    from mlflow.tracking import MlflowClient

    out = tmp_path / "out"
    assert main(stage1_args(inputs, out, "--tracking")) == ExitCode.COMPLETE
    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "stage1"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["batch_cases"] == "16"
    assert run.data.params["aggregator.dim"] == "32"
    logged = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "loss")}
    assert logged == pytest.approx(losses_of(out))
    assert run.data.metrics["val.mean_recall_at_10"] > 0
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"curves.png", "retrieval.png", "stage1.json", "config.json"} <= files
    kept = Path(client.download_artifacts(run.info.run_id, "stage1.json", str(tmp_path)))
    assert json.loads(kept.read_text()) == facts_of(out)


@pytest.mark.slow
def test_cohort_features_and_output_in_an_object_store(
    inputs: Stage1Inputs, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mstar.storage import objects
    from support.s3 import make_bucket

    monkeypatch.setenv("MSTAR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("MSTAR_STATE", str(tmp_path / "state"))
    bucket = make_bucket("stage1")
    for name in ("cohort", "features"):
        folder = getattr(inputs, name)
        for path in (p for p in folder.rglob("*") if p.is_file()):
            objects.put_file(path, f"{bucket}/{name}/{path.relative_to(folder).as_posix()}")
    there = f"{bucket}/out"
    flags = ("--cohort", f"{bucket}/cohort", "--features", f"{bucket}/features")
    assert main(stage1_args(inputs, there, *flags)) == ExitCode.COMPLETE
    assert main(stage1_args(inputs, tmp_path / "here")) == ExitCode.COMPLETE
    names = {info.rel for info in objects.list_files(there)}
    assert {"stage1.json", "run.json", "steps.jsonl", "curves.png", "tokenizer/vocab.txt"} <= names
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/steps.jsonl").write_bytes(objects.read_bytes(f"{there}/steps.jsonl"))
    assert losses_of(tmp_path / "copy") == losses_of(tmp_path / "here"), "the same numbers"
    for load in (load_aggregator, load_text_encoder, load_gene_encoder):
        load(there)
