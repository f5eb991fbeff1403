"""`mstar cohort split`: from a case table to a frozen registry and to further splits."""

import csv
from pathlib import Path

import pytest

from mstar.cohorts.split_job import SplitConfig, run
from mstar.data.cases import Case, write_cases
from mstar.data.splits.preset import PresetConfig
from mstar.data.splits.registry import read_registry
from mstar.data.splits.schemes import check_against, read_split
from mstar.errors import ConfigError, SplitError, TableError
from mstar.training.exit_codes import ExitCode
from support.split_cases import some_cases

SMALL = PresetConfig(cohorts="all", min_cases=20)


@pytest.fixture
def cohort(tmp_path: Path) -> str:
    write_cases(str(tmp_path / "cases.csv"), some_cases(200))
    return str(tmp_path)


def write_labels(cohort: str, name: str, rows: list[tuple[str, ...]]) -> str:
    path = Path(cohort, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(path)


def preset(cohort: str, **fields: object) -> SplitConfig:
    return SplitConfig(cohort=cohort, preset="mstar", **{"settings": SMALL, **fields})  # type: ignore[arg-type]


def test_the_registry_is_made_and_shown(cohort: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path(cohort, "cases.csv").read_bytes()
    assert run(preset(cohort)) == ExitCode.COMPLETE
    shown = capsys.readouterr().out
    registry = read_registry(cohort)
    counts = registry.counts["pairs_after"]
    assert registry.digest in shown
    assert f"{counts['wsi_report']:,}" in shown
    assert "(written)" in shown
    assert all(len(line) <= 100 for line in shown.splitlines()[1:])
    assert Path(cohort, "cases.csv").read_bytes() == before  # the registry is the one place
    assert run(preset(cohort)) == ExitCode.COMPLETE
    assert "unchanged" in capsys.readouterr().out


def test_equal_cohorts_give_equal_bytes(tmp_path: Path) -> None:
    cases = some_cases(100)
    for name, rows in (("one", cases), ("two", cases[::-1])):
        write_cases(str(tmp_path / name / "cases.csv"), rows)
        write_labels(
            str(tmp_path / name), "labels/t.csv", [("case_id", "split"), ("GEN-00003", "test")]
        )
        run(preset(str(tmp_path / name)))
    for file in ("splits.csv", "splits.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_labels_of_the_cohort_hold_out_by_default(cohort: str) -> None:
    rows = [("case_id", "label", "split"), *((f"GEN-{n:05d}", "x", "test") for n in range(50))]
    write_labels(cohort, "labels/t.csv", rows)
    run(preset(cohort, dry_run=True))
    assert not Path(cohort, "splits.csv").exists()
    run(preset(cohort))
    registry = read_registry(cohort)
    assert not registry.pretraining & {row[0] for row in rows}
    assert registry.counts["tasks"] == {"labels/t.csv": 50}
    with pytest.raises(SplitError, match="rows, 0 of them new"):
        run(preset(cohort, tasks=("none",)))


def test_another_seed_is_refused_then_replaced_by_name(cohort: str) -> None:
    run(preset(cohort))
    digest = read_registry(cohort).digest
    other = PresetConfig(cohorts="all", min_cases=20, seed=1)
    with pytest.raises(SplitError, match=f"--replace {digest[:12]}"):
        run(preset(cohort, settings=other))
    assert read_registry(cohort).digest == digest
    run(preset(cohort, settings=other, replace=digest[:12]))
    assert read_registry(cohort).seed == 1
    assert Path(cohort, "splits", "replaced", f"splits-{digest[:12]}.csv").exists()
    read_registry(cohort).check_cases(some_cases(200))


def test_new_cases_are_placed_by_extend(cohort: str) -> None:
    run(preset(cohort))
    before = {row.case_id: row for row in read_registry(cohort).rows}
    grown = [
        *some_cases(200),
        *(
            Case(case_id=f"N{n}", cancer_type="BRCA", os_months=float(n), os_event=n % 2)
            for n in range(40)
        ),
    ]
    write_cases(f"{cohort}/cases.csv", grown)
    with pytest.raises(SplitError, match=r"40 cases \(N0, .* of the case table are not in it"):
        read_registry(cohort).check_cases(grown)
    run(preset(cohort, extend=True))
    after = {row.case_id: row for row in read_registry(cohort).rows}
    assert {case: after[case] for case in before} == before
    assert {after[f"N{n}"].part for n in range(40)} == {"train", "val", "test"}
    read_registry(cohort).check_cases(grown)


def test_pretrained_cases_cannot_be_held_out_later_by_extend(cohort: str) -> None:
    run(preset(cohort))
    seen = min(read_registry(cohort).pretraining)
    write_labels(cohort, "labels/t.csv", [("case_id", "split"), (seen, "test")])
    with pytest.raises(SplitError, match=f"{seen} \\(.*/1 → .*/0\\)"):
        run(preset(cohort, extend=True))


def test_a_slide_in_two_cases_stops_everything(cohort: str) -> None:
    cases = [
        *some_cases(50),
        Case(case_id="x", cancer_type="BRCA", slides=("s",)),
        Case(case_id="y", cancer_type="BRCA", slides=("s",)),
    ]
    write_cases(f"{cohort}/cases.csv", cases)
    for config in (preset(cohort), SplitConfig(cohort=cohort, scheme="external")):
        with pytest.raises(SplitError, match=r"slide s is in 2 cases \(x, y\)"):
            run(config)


@pytest.mark.parametrize("scheme", ["survival", "kfold", "site", "external"])
def test_schemes_from_the_case_table(cohort: str, scheme: str) -> None:
    config = SplitConfig(cohort=cohort, scheme=scheme, name=f"my_{scheme}", settings=SMALL)  # type: ignore[arg-type]
    assert run(config) == ExitCode.COMPLETE
    split = read_split(cohort, f"my_{scheme}")
    cases = some_cases(200)
    labelled = sum(case.os_months is not None for case in cases)
    size = labelled if scheme == "survival" else len(cases)
    assert {len(fold.parts) for fold in split.folds} == {size}
    assert len(split.folds) == {"kfold": 5, "site": 5}.get(scheme, 1)
    assert split.facts["left_out"] == (
        {"no survival": 200 - labelled} if scheme == "survival" else {}
    )
    check_against(split, cases)


@pytest.mark.parametrize("scheme", ["label", "kfold"])
def test_schemes_from_a_label_table(cohort: str, scheme: str) -> None:
    rows = [(f"GEN-{n:05d}", "mut" if n % 4 == 0 else "wt") for n in range(120)]
    labels = write_labels(cohort, "l.csv", [("case", "tp53"), *rows, ("GEN-00150", "")])
    config = SplitConfig(cohort=cohort, scheme=scheme, label=labels, label_column="tp53")  # type: ignore[arg-type]
    run(config)
    split = read_split(cohort, scheme)
    assert set(split.folds[0].parts) == {case for case, _ in rows}
    assert split.facts["left_out"] == {"no label": 1}
    mutated = sum(dict(rows)[case] == "mut" for case in split.folds[0].cases_of("test"))
    assert abs(mutated - 6) <= 1


def test_survival_of_a_label_table(cohort: str) -> None:
    rows = [(f"GEN-{n:05d}", str(n), str(n % 2)) for n in range(60)]
    labels = write_labels(cohort, "dss.csv", [("case_id", "time_months", "event"), *rows])
    run(SplitConfig(cohort=cohort, scheme="survival", label=labels, name="dss"))
    sizes = [
        len(read_split(cohort, "dss").folds[0].cases_of(part)) for part in ("train", "val", "test")
    ]
    assert sizes == [42, 6, 12]


def test_tcga_sites_come_from_barcodes(tmp_path: Path) -> None:
    cases = [Case(case_id=f"TCGA-A{n % 3}-{n:04d}", cancer_type="BRCA") for n in range(30)]
    write_cases(str(tmp_path / "cases.csv"), cases)
    run(SplitConfig(cohort=str(tmp_path), scheme="site"))
    assert [fold.name for fold in read_split(str(tmp_path), "site").folds] == ["A0", "A1", "A2"]


def test_cases_without_a_site_are_named(cohort: str) -> None:
    write_cases(f"{cohort}/cases.csv", [*some_cases(20), Case(case_id="x", cancer_type="BRCA")])
    with pytest.raises(SplitError, match=r"1 case \(x\) have no site. Fill the column site"):
        run(SplitConfig(cohort=cohort, scheme="site"))


def test_a_split_that_pretraining_saw_is_refused(cohort: str) -> None:
    run(preset(cohort))
    config = SplitConfig(cohort=cohort, scheme="kfold")
    with pytest.raises(SplitError, match=r"split kfold: .* are seen in pretraining"):
        run(config)
    assert not Path(cohort, "splits").exists()
    run(SplitConfig(cohort=cohort, scheme="kfold", allow_seen=True))
    split = read_split(cohort, "kfold")
    assert split.facts["registry_digest"] == read_registry(cohort).digest
    assert split.facts["seen_in_pretraining"] == len(read_registry(cohort).pretraining)
    check_against(split, some_cases(200), read_registry(cohort))


def test_a_split_made_first_is_held_out_of_pretraining(cohort: str) -> None:
    rows = [(f"GEN-{n:05d}", str(n % 2)) for n in range(100)]
    labels = write_labels(cohort, "l.csv", [("case_id", "label"), *rows])
    run(SplitConfig(cohort=cohort, scheme="label", label=labels))
    run(preset(cohort, tasks=(f"{cohort}/splits/label.csv",)))
    split = read_split(cohort, "label")
    assert not read_registry(cohort).pretraining & split.held_out
    check_against(split, some_cases(200), read_registry(cohort))


def test_labels_of_unknown_cases_are_named(cohort: str) -> None:
    labels = write_labels(
        cohort, "l.csv", [("case_id", "label"), ("nobody", "1"), ("GEN-00001", "0")]
    )
    with pytest.raises(
        SplitError, match=r"1 case \(nobody\) of the split are not in the case table"
    ):
        run(SplitConfig(cohort=cohort, scheme="label", label=labels))


def test_two_labels_of_one_case_are_refused(cohort: str) -> None:
    labels = write_labels(
        cohort, "l.csv", [("case_id", "label"), ("GEN-00001", "1"), ("GEN-00001", "0")]
    )
    with pytest.raises(TableError, match="row 2, column case_id: expected what an earlier row"):
        run(SplitConfig(cohort=cohort, scheme="label", label=labels))


def test_a_split_is_held_against_the_table_as_it_is_now(cohort: str) -> None:
    run(SplitConfig(cohort=cohort, scheme="external", name="ext"))
    split = read_split(cohort, "ext")
    check_against(split, some_cases(200))
    with pytest.raises(SplitError, match=r"split ext: 1 case \(GEN-00199\) of the split are not"):
        check_against(split, some_cases(199))
    run(preset(cohort, tasks=("none",)))  # the registry came later and does not know the split
    with pytest.raises(SplitError, match=r"split ext: .* are seen in pretraining"):
        check_against(split, some_cases(200), read_registry(cohort))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "--preset mstar .* or --scheme"),
        ({"preset": "mstar", "scheme": "kfold"}, "one of the two"),
        ({"scheme": "label"}, "Name it with --label"),
        ({"scheme": "kfold", "extend": True}, "--extend goes with"),
    ],
)
def test_contradicting_settings(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SplitConfig(cohort="C", **fields)  # type: ignore[arg-type]
