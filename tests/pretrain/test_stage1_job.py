"""The stage-1 job end to end: what it leaves, what it says, and what a rerun does."""

from __future__ import annotations

import json
import re
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mstar.cli.main import main
from mstar.config import to_dict
from mstar.data.bags import BagConfig, BagReader
from mstar.data.cases import Case, read_cases
from mstar.data.report_tokens import ReportTokenizer
from mstar.data.reports import read_reports
from mstar.data.rna.binning import BinningConfig, bin_expression
from mstar.data.rna.store import ExpressionStore
from mstar.features.store import FeatureStore
from mstar.models.exports import read_export
from mstar.models.stage1_files import load_aggregator, load_gene_encoder, load_text_encoder
from mstar.pretrain import stage1
from mstar.pretrain.stage1_config import Stage1Config
from mstar.recipes.stage1 import laptop
from mstar.training.exit_codes import ExitCode
from support.stage1_inputs import (
    Stage1Inputs,
    facts_of,
    losses_of,
    stage1_args,
    write_stage1_inputs,
)

KINDS = ("aggregator", "text_encoder", "gene_encoder")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Stage1Inputs:
    """A cohort of 60 cases, of which 15 or so are held out by the job itself."""
    return write_stage1_inputs(tmp_path_factory.mktemp("stage1"))


@pytest.fixture(scope="module")
def done(inputs: Stage1Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one whole run."""
    out = tmp_path_factory.mktemp("out") / "run"
    assert main(stage1_args(inputs, out, "--lr", "0.003")) == ExitCode.COMPLETE
    return out


@torch.no_grad()
def vectors_by_hand(inputs: Stage1Inputs, out: Path, cases: list[Case]) -> dict[str, np.ndarray]:
    """Unit vectors of cases from nothing but the export; NaN rows where a modality is missing."""
    aggregator, text = load_aggregator(str(out)), load_text_encoder(str(out))
    gene, genes = load_gene_encoder(str(out))
    bags = BagReader(str(inputs.features), BagConfig(size=32, seed=0))
    reports = read_reports(str(inputs.cohort / "reports.csv"))
    store = ExpressionStore.open(str(inputs.cohort / "expression"))
    assert genes == store.genes
    tokenizer = ReportTokenizer(out / "tokenizer", max_tokens=32)
    found = {name: np.full((len(cases), 32), np.nan) for name in ("wsi", "text", "gene")}
    for row, case in enumerate(cases):
        if case.slides:
            bag = bags.read(case.case_id, case.slides, epoch=0)
            features = torch.from_numpy(bag.features).float()[None]
            slide = aggregator(features, torch.from_numpy(bag.mask)[None]).slide
            found["wsi"][row] = torch.nn.functional.normalize(slide)[0]
        if case.report:
            tokens = tokenizer.encode(reports[case.report].text)
            ids, mask = torch.from_numpy(tokens.input_ids), torch.from_numpy(tokens.attention_mask)
            found["text"][row] = torch.nn.functional.normalize(text(ids[None], mask[None]))[0]
        if case.rna:
            ids = torch.from_numpy(bin_expression(store.rows([case.rna]), BinningConfig()))
            found["gene"][row] = torch.nn.functional.normalize(gene(ids))[0]
    return found


def test_the_exports_alone_give_the_validation_that_chose_them(
    inputs: Stage1Inputs, done: Path
) -> None:
    facts = facts_of(done)
    held_out = [case for case in read_cases(str(inputs.cohort / "cases.csv")) if is_val(case)]
    assert len(held_out) == facts["val_cases"] > 5
    vectors = vectors_by_hand(inputs, done, held_out)
    for first, second in permutations(("wsi", "text", "gene"), 2):
        rows = np.isfinite(vectors[first][:, 0]) & np.isfinite(vectors[second][:, 0])
        scores = vectors[first][rows] @ vectors[second][rows].T
        ranks = 1 + (scores > np.diag(scores)[:, None]).sum(1)
        for k in (1, 5):  # no two reports of this cohort are alike
            stated = facts["validation"][f"val.recall_at_{k}.{first}_to_{second}"]
            assert stated == pytest.approx((ranks <= k).mean()), (first, second, k)
        found = facts["retrieval"][f"{first}_to_{second}"]
        assert found["median_rank"] == pytest.approx(np.median(ranks))
        assert found["num_queries"] == rows.sum()


def is_val(case: Case) -> bool:
    """Held out by a run with seed 0 and a quarter for validation, without a registry."""
    from mstar.training.seeds import seed_of

    return seed_of("val", 0, case.case_id) < 0.25 * 2**63


def test_stage1_json_says_what_was_trained_on_what(inputs: Stage1Inputs, done: Path) -> None:
    facts = facts_of(done)
    cases = read_cases(str(inputs.cohort / "cases.csv"))
    assert facts["config"]["lr"] == 0.003
    assert facts["config"]["cohort"] == str(inputs.cohort)
    assert facts["train_cases"] + facts["val_cases"] == len(cases)
    assert facts["inputs"]["reports"] == read_reports(str(inputs.cohort / "reports.csv")).digest
    expression = ExpressionStore.open(str(inputs.cohort / "expression"))
    assert facts["inputs"]["expression"] == expression.digest
    assert facts["inputs"]["features"] == FeatureStore.open(str(inputs.features)).fingerprint
    assert facts["inputs"]["splits"] == ""
    assert facts["tokenizer"]["digest"] == ReportTokenizer(inputs.text, max_tokens=32).digest
    assert facts["selected_by"] == "highest val.mean_recall_at_10"
    assert facts["steps_done"] == facts["steps"] == len(losses_of(done))
    assert facts["complete"] is True
    rows = [json.loads(line) for line in (done / "steps.jsonl").read_text().splitlines()]
    pairs = {name: min(r[f"pairs.{name}"] for r in rows if "loss" in r) for name in PAIRS}
    for name, fewest in pairs.items():
        assert 2 <= facts["every_batch_holds"][f"{name.replace('_', '-')}_pairs"] <= fewest
    scores = {r["step"]: r["val.mean_recall_at_10"] for r in rows if "loss" not in r}
    assert facts["step"] == max(scores, key=lambda step: (scores[step], -step))


PAIRS = ("wsi_text", "wsi_gene", "text_gene")


def test_every_export_is_of_the_step_that_stage1_json_names(done: Path) -> None:
    step = facts_of(done)["step"]
    assert {read_export(str(done), kind).record["provenance"]["step"] for kind in KINDS} == {step}


def test_the_tokenizer_travels_with_the_text_encoder(inputs: Stage1Inputs, done: Path) -> None:
    text = "tumour1 review factor0level2 margin [SEP] unheard"
    there = ReportTokenizer(inputs.text, max_tokens=32)
    here = ReportTokenizer(done / facts_of(done)["tokenizer"]["folder"], max_tokens=32)
    assert here.digest == there.digest
    np.testing.assert_array_equal(here.encode(text).input_ids, there.encode(text).input_ids)


def test_pictures_and_log_are_there(done: Path) -> None:
    for name in ("curves.png", "retrieval.png"):
        assert (done / name).read_bytes().startswith(b"\x89PNG")
    assert "cases to train on" in (done / "log.txt").read_text()


def test_a_rerun_of_a_complete_run_does_nothing_and_says_so(
    inputs: Stage1Inputs,
    done: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*")}
    monkeypatch.setattr(stage1, "train", lambda *_: pytest.fail("it trained"))
    assert main(stage1_args(inputs, done, "--lr", "0.003")) == ExitCode.COMPLETE
    assert "was complete before" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in done.rglob("*")} == before


def test_another_config_into_the_same_folder_is_refused_by_its_fields(
    inputs: Stage1Inputs, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--lr", "0.003", "--loss.triplet-weight", "0.5", "--epochs", "3")
    assert main(stage1_args(inputs, done, *flags)) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "epochs: there 2, here 3" in said
    assert "loss.triplet_weight: there 0.1, here 0.5" in said
    assert len(re.findall("there .*, here", said)) == 2, "and no other field"


def test_dry_run_says_what_it_would_do_and_writes_nothing(
    inputs: Stage1Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "never"
    assert main(stage1_args(inputs, out, "--dry-run")) == ExitCode.COMPLETE
    said = capsys.readouterr().out
    assert '"batch_cases": 16' in said
    assert re.search(r"would train on 50 cases and validate on 10 .* 8 steps in 2 epochs", said)
    assert not out.exists()


def test_the_summary_gives_every_recall_its_interval_and_yardstick(
    inputs: Stage1Inputs, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(stage1_args(inputs, done, "--lr", "0.003")) == ExitCode.COMPLETE
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 30, "one screen"
    cell = r"[01]\.\d\d \[[01]\.\d\d, [01]\.\d\d\]"
    for name in ("slide → report", "report → slide", "slide → RNA", "RNA → report"):
        first, second = (line for line in lines if line.strip().startswith(name))
        assert len(re.findall(cell, first)) == 4, "R@1, 5, 10 and 50"
        assert re.search(rf"{cell} type [01]\.\d\d .*R@1 {cell} chance .*R@5 {cell} chance", second)
    assert any("chose the exported step" in line for line in lines)
    assert any("R@10 and R@50 of 9 cases is 1 whatever is learned" in line for line in lines)


def test_what_only_says_how_it_is_run_is_not_in_the_fingerprint() -> None:
    def made(**fields: Any) -> Stage1Config:
        settings = {
            **{f: getattr(laptop(), f) for f in Stage1Config.__dataclass_fields__},
            **dict.fromkeys(("cohort", "features", "out"), "here"),
        }
        return Stage1Config(**{**settings, **fields})

    same = (made(out="p"), made(chunk_cases=3), made(cohort="elsewhere"), made(device="cuda"))
    assert {config.fingerprint for config in same} == {made().fingerprint}
    others = (made(lr=1e-5), made(seed=1), made(batch_cases=8), made(text="other"))
    assert len({config.fingerprint for config in (made(), *others)}) == 5
    assert set(made().identity) < set(to_dict(made()))
