"""After both stages text finds held-out slides, within the cancer type too; not when shuffled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.language_proof import SMALL, claims_of, namings, prove, shuffled, split, write_tasks
from mstar.data.cases import read_cases
from mstar.data.splits.registry import read_registry
from mstar.data.task_registry import read_task_registry
from mstar.downstream.language.prompts import find_prompts
from mstar.downstream.statistics.metrics import value_of
from support.language_world import write_world
from support.prediction_files import classification


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of cases alone, split."""
    folder = write_world(tmp_path_factory.mktemp("world"), cases=40).root / "C"
    split(folder)
    return folder


def test_only_pretraining_cases_are_handed_others_reports_and_rna(cohort: Path) -> None:
    """So what is tested stays true."""
    other = shuffled(cohort, seed=3)
    seen = read_registry(str(cohort)).pretraining
    before, after = read_cases(f"{cohort}/cases.csv"), read_cases(f"{other}/cases.csv")
    moved = 0
    for one, two in zip(before, after, strict=True):
        assert (one.report is None, one.rna is None) == (two.report is None, two.rna is None)
        if one.case_id not in seen:
            assert one == two
        moved += one.report != two.report
    assert moved > 0.8 * sum(one.report is not None for one in before if one.case_id in seen)


def test_tasks_of_the_proof_have_prompts_and_labels(cohort: Path, tmp_path: Path) -> None:
    folder = cohort / "truth"
    folder.mkdir(exist_ok=True)
    ids = [case.case_id for case in read_cases(f"{cohort}/cases.csv")]
    rows = [f"{name},{1 + at % 3},{at % 2}" for at, name in enumerate(ids)]
    (folder / "cases.csv").write_text("\n".join(["case_id,grade,mutation", *rows]) + "\n")
    write_tasks(tmp_path, cohort)
    registry = read_task_registry(own=[f"{tmp_path}/own.csv"])
    for name in ("type", "grade", "mutation"):
        found = find_prompts(registry.get(name), f"{tmp_path}/prompts")
        assert all(len(own) >= 4 for own in found.synonyms)
        assert (tmp_path / f"labels/{name}.csv").read_text().count("\n") == len(ids) + 1
    assert np.isin(registry.get("grade").class_names, ["grade1", "grade2", "grade3"]).all()


def test_namings_are_all_ways_to_give_classes_each_others_scores() -> None:
    """Together at chance; the first is the right one, and best where scores follow the labels."""
    sharp = classification("a", classes=("x", "y", "z"), signal=3.0)
    blind = classification("b", signal=0.0)
    own, drawn = namings([sharp, blind])
    assert len(drawn) == 6 * 2
    assert own == drawn[0]
    assert drawn.mean() == pytest.approx(0.5, abs=0.01)
    (alone, ways), area = namings([sharp]), value_of("macro_auc", sharp.evaluated()[0])
    assert alone == ways.max() == pytest.approx(area, abs=1e-9)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_it_holds_the_whole_way_from_pixels(tmp_path: Path) -> None:
    """The benchmark's claims on a smaller cohort than its own, of another seed; ten minutes."""
    claims = claims_of(prove(tmp_path, SMALL, seed=3), SMALL.alone)
    assert not [claim.text for claim in claims if not claim.holds]
