"""`mstar targets`: what is stored and said, what fails, and the shards that follow."""

from dataclasses import replace
from pathlib import Path

import pytest

from mstar.cli.resolve import JobParts, resolve
from mstar.data.targets import TargetStore
from mstar.features.store import FeatureStore
from mstar.models.stage1_files import load_aggregator
from mstar.pretrain import targets_job, targets_survey
from mstar.pretrain.shards_config import ShardsConfig, ShardSettings
from mstar.recipes import targets as recipes
from mstar.storage.ledger import FailureLedger
from mstar.training.exit_codes import ExitCode
from support.target_inputs import (
    NUM_SLIDES,
    SLIDES,
    WINDOW,
    TargetInputs,
    done,
    features_of,
    write_features,
    write_target_inputs,
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> TargetInputs:
    return write_target_inputs(tmp_path_factory.mktemp("inputs"), SLIDES)


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
