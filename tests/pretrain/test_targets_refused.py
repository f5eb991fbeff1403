"""`mstar targets`: no held-out case unless it is asked for, and no wrong targets in silence."""

from dataclasses import replace
from pathlib import Path

import pytest

from mstar.data.cases import read_cases, write_cases
from mstar.data.splits.registry import SplitRegistry, SplitRow, cases_digest, write_registry
from mstar.data.targets import TargetStore
from mstar.errors import CohortError, ConfigError, FeatureError, StorageError, StoreMismatchError
from mstar.pretrain import targets_job, targets_survey
from mstar.training.exit_codes import ExitCode
from support.target_inputs import (
    SLIDES,
    TargetInputs,
    digests,
    done,
    write_aggregator,
    write_target_inputs,
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> TargetInputs:
    return write_target_inputs(tmp_path_factory.mktemp("inputs"), SLIDES)


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
