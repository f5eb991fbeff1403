"""`stage1 --init-from`: what is taken over, what is measured of it, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mstar.cli.main import main
from mstar.data.cases import read_cases
from mstar.models.state_dicts import read_state
from mstar.pretrain import stage1_export
from mstar.training.exit_codes import ExitCode
from support.stage1_inputs import Stage1Inputs, stage1_args, write_stage1_inputs

KINDS = ("aggregator", "text_encoder", "gene_encoder")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Stage1Inputs:
    """The cohort of the first run."""
    return write_stage1_inputs(tmp_path_factory.mktemp("small"), cases=60)


@pytest.fixture(scope="module")
def large(small: Stage1Inputs, tmp_path_factory: pytest.TempPathFactory) -> Stage1Inputs:
    """The same cases and 40 new ones."""
    made = write_stage1_inputs(tmp_path_factory.mktemp("large"), cases=100)
    return Stage1Inputs(cohort=made.cohort, features=made.features, text=small.text)


@pytest.fixture(scope="module", autouse=True)
def no_pictures() -> Any:
    """They take half of the time of such short runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage1_export, "curves", lambda *_: None)
        patch.setattr(stage1_export, "retrieval_matrix", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def first(small: Stage1Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a finished run."""
    out = tmp_path_factory.mktemp("first") / "run"
    assert main(stage1_args(small, out, "--lr", "0.003", "--initial-scale", "5")) == 0
    return out


def read(out: Path, name: str) -> dict[str, Any]:
    """A JSON file of an output."""
    found: dict[str, Any] = json.loads((out / name).read_text())
    return found


def test_a_run_that_learns_nothing_leaves_what_it_started_from(
    small: Stage1Inputs, first: Path, tmp_path: Path
) -> None:
    flags = ("--init-from", str(first), "--lr", "0", "--lr-text", "0", "--epochs", "1")
    assert main(stage1_args(small, tmp_path / "b", *flags)) == ExitCode.COMPLETE
    for kind in KINDS:
        before = read_state(first / f"{kind}.safetensors")
        after = read_state(tmp_path / "b" / f"{kind}.safetensors")
        assert before.keys() == after.keys()
        for name in before:
            torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)
    scale = read(first, "stage1.json")["logit_scale"]
    assert scale != pytest.approx(1 / 0.07, rel=0.2), "not the default"
    assert read(tmp_path / "b", "stage1.json")["logit_scale"] == pytest.approx(scale, rel=1e-5)
    old, _ = read(tmp_path / "b", "forgetting.json")["parts"]
    assert old["before"] == pytest.approx(old["after"], abs=1e-4)


def test_new_cases_go_on_and_what_was_forgotten_is_measured(
    small: Stage1Inputs,
    large: Stage1Inputs,
    first: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "b"
    flags = ("--init-from", str(first), "--lr", "0.003", "--epochs", "1")
    assert main(stage1_args(large, out, *flags)) == ExitCode.COMPLETE
    said = capsys.readouterr().out
    assert "old validation cases" in said
    before_facts, facts = read(first, "stage1.json"), read(out, "stage1.json")
    assert facts["train_cases"] > before_facts["train_cases"]
    old, new = read(out, "forgetting.json")["parts"]
    assert old["size"] == before_facts["val_cases"]
    shown = {name: before_facts["validation"][name] for name in old["before"]
             if name in before_facts["validation"]}  # fmt: skip
    assert len(shown) > 20
    assert {name: old["before"][name] for name in shown} == pytest.approx(shown, abs=1e-4)
    assert old["after"] != pytest.approx(old["before"], abs=1e-4), "it has learnt something"
    for name in ("wsi", "text", "gene"):
        assert 0 < old["after"][f"vectors.cosine.{name}"] < 1
    ids = {case.case_id for case in read_cases(str(small.cohort / "cases.csv"))}
    assert new["size"] == facts["val_cases"] - old["size"] > 0
    assert len(ids) == 60
    page = (out / "forgetting.md").read_text()
    assert "| `val.mean_recall_at_10` |" in page
    assert main(stage1_args(large, out, *flags)) == ExitCode.COMPLETE, "again: nothing to do"
    assert main(stage1_args(large, out, "--lr", "0.003", "--epochs", "1")) == ExitCode.USAGE
    assert "began with other encoders" in capsys.readouterr().err


def test_an_old_cohort_that_is_gone_is_said(
    small: Stage1Inputs, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(first, tmp_path / "first")
    facts = read(copy, "stage1.json")
    facts["config"]["cohort"] = str(tmp_path / "gone")
    (copy / "stage1.json").write_text(json.dumps(facts))
    out = tmp_path / "b"
    flags = ("--init-from", str(copy), "--epochs", "1")
    assert main(stage1_args(small, out, *flags)) == ExitCode.COMPLETE
    assert "--old-cohort" in capsys.readouterr().out
    (out / "forgetting.json").unlink()
    again = (*flags, "--old-cohort", str(small.cohort))
    assert main(stage1_args(small, out, *again)) == ExitCode.COMPLETE
    assert read(out, "forgetting.json")["parts"][0]["size"] == facts["val_cases"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--aggregator.heads", "4"), "aggregator is another one: heads: there 2, here 4"),
        (("--aggregator.dim", "48"), "is another one: dim: there 32, here 48"),
        (("--num-bins", "3"), "--num-bins"),
    ],
)
def test_another_architecture_is_refused(
    small: Stage1Inputs,
    first: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    said: str,
) -> None:
    words = stage1_args(small, tmp_path / "b", "--init-from", str(first), *flags)
    assert main(words) in (ExitCode.USAGE, ExitCode.FAILED)
    assert said in capsys.readouterr().err


def test_what_is_no_finished_run_is_refused(
    small: Stage1Inputs, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(stage1_args(small, tmp_path / "b", "--init-from", str(tmp_path))) == ExitCode.USAGE
    assert "got nothing" in capsys.readouterr().err
    copy = shutil.copytree(first, tmp_path / "copy")
    facts = read(copy, "stage1.json")
    (copy / "stage1.json").write_text(json.dumps({**facts, "complete": False}))
    assert main(stage1_args(small, tmp_path / "b", "--init-from", str(copy))) == ExitCode.USAGE
    assert "not ended" in capsys.readouterr().err
