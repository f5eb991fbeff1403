"""The registry: parts by survival, pretraining of the rest, cuts, and its digest."""

import dataclasses
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings

from mstar.data.cancer_types import cohort_group
from mstar.data.cases import Case
from mstar.data.splits.held_out import TaskTable
from mstar.data.splits.preset import PresetConfig, make_registry
from mstar.data.splits.registry import (
    SplitRegistry,
    SplitRow,
    has_registry,
    read_registry,
    write_registry,
)
from mstar.errors import ConfigError, SplitError
from support.split_cases import cohorts, some_cases

SMALL = PresetConfig(cohorts="all", min_cases=20)
RATIO = {"train": 0.7, "val": 0.1, "test": 0.2}


def table(*patients: str) -> TaskTable:
    return TaskTable(uri="labels/t.csv", patients=frozenset(patients))


@settings(max_examples=60, deadline=None)
@given(cohorts())
def test_any_cohort_is_split_as_stated(cases: list[Case]) -> None:
    config = PresetConfig(cohorts="all", min_cases=5)
    held = {case.case_id for case in cases[::7]}
    registry = make_registry(cases, config, [table(*held)])
    rows = {row.case_id: row for row in registry.rows}
    assert rows.keys() == {case.case_id for case in cases}  # each case once: no patient in two
    sizes = Counter(cohort_group(case.cancer_type) for case in cases)
    for case in cases:
        row = rows[case.case_id]
        splittable = sizes[row.cohort] > 5 and case.os_months is not None
        assert bool(row.part) == splittable
        assert row.pretraining == (row.part in ("", "train") and case.case_id not in held)
    for cohort in sizes:
        parts = Counter(row.part for row in registry.rows if row.cohort == cohort and row.part)
        for part, share in RATIO.items():
            assert abs(parts[part] - share * parts.total()) < 1


@settings(max_examples=40, deadline=None)
@given(cohorts())
def test_row_order_does_not_matter(cases: list[Case]) -> None:
    config = PresetConfig(cohorts="all", min_cases=5)
    shuffled = random.Random(1).sample(cases, len(cases))
    first, second = make_registry(cases, config), make_registry(shuffled, config)
    assert first == second
    assert first.digest == second.digest


def test_strata_are_spread_over_the_parts() -> None:
    cases = some_cases(400, cancers=("BRCA",), known=1.0)
    registry = make_registry(cases, SMALL)
    part_of = {row.case_id: row.part for row in registry.rows}
    for event in (0, 1):
        alike = sorted(
            (case for case in cases if case.os_event == event), key=lambda case: case.os_months or 0
        )
        quarter = [case.case_id for case in alike[: len(alike) // 4]]
        tests = sum(part_of[case] == "test" for case in quarter)
        assert abs(tests - 0.2 * len(quarter)) < 2.5  # one case of the quota, ties at the border


def test_a_seed_is_another_split() -> None:
    cases = some_cases(200)
    other = dataclasses.replace(SMALL, seed=1)
    assert make_registry(cases, SMALL).digest != make_registry(cases, other).digest


def test_only_large_cohorts_of_the_paper_are_split_by_default() -> None:
    cases = some_cases(450, cancers=("COAD", "READ")) + [
        dataclasses.replace(case, case_id=f"x{case.case_id}", slides=())
        for case in some_cases(900, cancers=("STAD", "BRCA"), seed=1)[:860]
    ]
    registry = make_registry(cases, PresetConfig())
    split = {row.cohort for row in registry.rows if row.part}
    sizes = Counter(cohort_group(case.cancer_type) for case in cases)
    assert sizes["CRC"] > 400
    assert sizes["STAD"] > 400
    assert split == {"CRC"} | ({"BRCA"} if sizes["BRCA"] > 400 else set())
    stad = [row for row in registry.rows if row.cohort == "STAD"]
    assert all(row.pretraining and not row.part for row in stad)


def test_more_than_min_cases_means_more() -> None:
    cases = some_cases(20, cancers=("BRCA",))
    assert not any(row.part for row in make_registry(cases, SMALL).rows)
    assert any(row.part for row in make_registry(some_cases(21, cancers=("BRCA",)), SMALL).rows)


@pytest.mark.parametrize(
    ("names", "message"),
    [("BRAC", "--cohorts BRAC: expected paper, all"), ("KIRC", "got 1. Leave it out")],
)
def test_named_cohorts_must_be_there_and_large(names: str, message: str) -> None:
    cases = [*some_cases(30, cancers=("BRCA",)), Case(case_id="k", cancer_type="KIRC")]
    with pytest.raises(ConfigError, match=message):
        make_registry(cases, PresetConfig(cohorts=names, min_cases=20))
    registry = make_registry(cases, PresetConfig(cohorts="BRCA", min_cases=20))
    assert registry.counts["split_cohorts"] == ["BRCA"]


def test_pair_counts_drop_by_the_held_out() -> None:
    cases = some_cases(300)
    counts = make_registry(cases, SMALL).counts
    seen = make_registry(cases, SMALL).pretraining
    both = [case for case in cases if case.slides and case.report]
    assert counts["pairs_before"]["wsi_report"] == len(both)
    assert counts["pairs_after"]["wsi_report"] == sum(case.case_id in seen for case in both)
    assert counts["pairs_after"]["wsi_report"] < len(both)


def test_tasks_hold_out_by_patient() -> None:
    cases = [Case(case_id="TCGA-A2-A0T2-01A", cancer_type="STAD"), *some_cases(3)]
    registry = make_registry(cases, SMALL, [table("TCGA-A2-A0T2", "elsewhere")])
    assert [row.case_id for row in registry.rows if not row.pretraining] == ["TCGA-A2-A0T2-01A"]
    assert registry.counts["tasks"] == {"labels/t.csv": 1}
    assert registry.counts["cohorts"]["STAD"]["held_out_by_tasks"] >= 1


def test_a_task_is_cut_by_part() -> None:
    cases = some_cases(200, known=0.8)
    registry = make_registry(cases, SMALL)
    part_of = {row.case_id: row.part for row in registry.rows}
    placed = [case for case, part in part_of.items() if part][::-1]
    cut = registry.cut(placed)
    assert list(cut) == ["train", "val", "test"]
    assert sorted(case for ids in cut.values() for case in ids) == sorted(placed)
    assert cut["test"] == tuple(case for case in placed if part_of[case] == "test")
    without = [case for case, part in part_of.items() if not part]
    with pytest.raises(SplitError, match=rf"{len(without)} cases \(.*\) have no part"):
        registry.cut([*placed, *without])
    assert registry.cut(without, unassigned="train")["train"] == tuple(without)
    assert registry.cut([*without, *placed], unassigned="drop") == cut
    with pytest.raises(SplitError, match=r"1 case \(nobody\) are not in it"):
        registry.cut(["nobody"])


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    registry = make_registry(some_cases(100), SMALL, [table("GEN-00001")])
    assert not has_registry(str(tmp_path))
    assert write_registry(str(tmp_path), registry)
    assert has_registry(str(tmp_path))
    found = read_registry(str(tmp_path))
    assert found.rows == registry.rows
    assert found.counts == json.loads(json.dumps(registry.counts))
    found.check_digest(registry.digest)
    with pytest.raises(SplitError, match="expected the one with digest 0123456789ab"):
        found.check_digest("0123456789abcdef")


def test_without_a_registry_the_message_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match=r"mstar cohort split .* --preset mstar"):
        read_registry(str(tmp_path))


def test_the_case_table_may_not_drift() -> None:
    cases = some_cases(50)
    registry = make_registry(cases, SMALL)
    registry.check_cases(cases[::-1])
    with pytest.raises(SplitError, match=r"1 case \(GEN-00000\) of the split are not in the case"):
        registry.check_cases(cases[1:])
    with pytest.raises(SplitError, match=r"1 case \(new\) of the case table are not in it"):
        registry.check_cases([*cases, Case(case_id="new", cancer_type="BRCA")])


def test_test_cases_may_not_be_marked_for_pretraining(tmp_path: Path) -> None:
    row = SplitRow(case_id="a", cohort="BRCA", part="test", pretraining=True)
    registry = SplitRegistry(name="x", seed=0, rows=(row,), cases_digest="")
    with pytest.raises(SplitError, match=r"1 case \(a\) of validation and test are marked"):
        write_registry(str(tmp_path), registry)
    assert not has_registry(str(tmp_path))


def test_new_cases_are_placed_without_moving_others() -> None:
    cases = some_cases(300, seed=4)
    old = make_registry(cases[:200], SMALL)
    new = make_registry(cases, dataclasses.replace(SMALL, seed=99), kept=old)
    before = {row.case_id: row for row in old.rows}
    after = {row.case_id: row for row in new.rows}
    assert {case: after[case] for case in before} == before
    assert new.seed == old.seed
    placed = Counter(row.part for row in new.rows if row.part)
    assert abs(placed["test"] - 0.2 * placed.total()) < 20
    assert {"val", "test"} <= {after[case.case_id].part for case in cases[200:]}


def test_a_cohort_that_was_pretrained_on_stays_so_when_it_grows() -> None:
    cases = some_cases(60, cancers=("BRCA",))
    old = make_registry(cases[:15], SMALL)
    assert not any(row.part for row in make_registry(cases, SMALL, kept=old).rows)
