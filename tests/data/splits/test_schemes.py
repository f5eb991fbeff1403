"""Further splits: each patient tested once, shares within a case, frozen to a file."""

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.data.splits.schemes import (
    Fold,
    Split,
    by_ratio,
    external,
    k_fold,
    label_strata,
    leave_one_site_out,
    read_split,
    split_file,
    write_split,
)
from mstar.errors import ConfigError, SplitError

LABELS = st.dictionaries(
    st.text("abc019", min_size=1, max_size=4), st.sampled_from("xyz"), min_size=10, max_size=80
)


def parts_of(fold: Fold) -> dict[str, tuple[str, ...]]:
    return {part: fold.cases_of(part) for part in ("train", "val", "test")}


@settings(max_examples=50, deadline=None)
@given(LABELS, st.integers(2, 10), st.sampled_from((0.0, 0.1, 0.25)))
def test_k_fold(labels: dict[str, str], folds: int, val_share: float) -> None:
    made = k_fold(label_strata(labels), folds=folds, val_share=val_share, seed=0)
    tested = [case for fold in made for case in fold.cases_of("test")]
    assert sorted(tested) == sorted(labels)  # every case once
    for fold in made:
        assert fold.parts.keys() == labels.keys()
        rest = len(labels) - len(fold.cases_of("test"))
        assert abs(len(fold.cases_of("val")) - val_share * rest) < 1
        assert abs(len(fold.cases_of("test")) - len(labels) / folds) < 1
    for label, size in Counter(labels.values()).items():
        for fold in made:
            alike = sum(labels[case] == label for case in fold.cases_of("test"))
            assert abs(alike - size / folds) < 1


@settings(max_examples=30, deadline=None)
@given(LABELS)
def test_rows_may_come_in_any_order(labels: dict[str, str]) -> None:
    shuffled = dict(random.Random(0).sample(list(labels.items()), len(labels)))
    for make in (
        lambda strata: by_ratio(strata, (0.7, 0.1, 0.2), seed=5),
        lambda strata: k_fold(strata, folds=3, val_share=0.1, seed=5),
    ):
        assert make(label_strata(labels)) == make(label_strata(shuffled))


@settings(max_examples=30, deadline=None)
@given(LABELS)
def test_ratio_by_label(labels: dict[str, str]) -> None:
    (fold,) = by_ratio(label_strata(labels), (0.7, 0.1, 0.2), seed=0)
    for label, size in Counter(labels.values()).items():
        for part, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
            alike = sum(labels[case] == label for case in fold.cases_of(part))
            assert abs(alike - share * size) < 1


def test_leave_one_site_out() -> None:
    sites = {f"c{n}": f"S{n % 7 % 3}" for n in range(70)} | {"lone": "S9"}
    strata = {case: (case[-1],) for case in sites}
    folds = leave_one_site_out(strata, sites, min_site_cases=2, val_share=0.1, seed=0)
    assert [fold.name for fold in folds] == ["S0", "S1", "S2"]
    for fold in folds:
        parts = parts_of(fold)
        assert {sites[case] for case in parts["test"]} == {fold.name}
        assert fold.name not in {sites[case] for case in parts["train"] + parts["val"]}
        assert "lone" in parts["train"] + parts["val"]
        assert sum(map(len, parts.values())) == len(sites)


def test_one_site_cannot_be_left_out() -> None:
    with pytest.raises(ConfigError, match="expected two sites or more"):
        leave_one_site_out(
            {"a": (), "b": ()}, {"a": "S", "b": "S"}, min_site_cases=1, val_share=0.1, seed=0
        )


def test_external_is_all_test() -> None:
    assert parts_of(external(["b", "a"])[0]) == {"train": (), "val": (), "test": ("a", "b")}


@pytest.mark.parametrize("folds", [0, 1, 11])
def test_impossible_numbers_of_folds(folds: int) -> None:
    strata = label_strata({str(n): "x" for n in range(10)})
    with pytest.raises(ConfigError, match=f"--folds {folds}: expected 2 to 10"):
        k_fold(strata, folds=folds, val_share=0.1, seed=0)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_impossible_val_shares(share: float) -> None:
    with pytest.raises(ConfigError, match="--val-share"):
        k_fold(label_strata({"a": "x", "b": "x"}), folds=2, val_share=share, seed=0)


def test_measurements_are_no_labels() -> None:
    with pytest.raises(ConfigError, match="expected classes, got 50 different labels"):
        label_strata({str(n): str(n / 7) for n in range(50)})


def test_folds_beyond_nine_stay_in_order() -> None:
    made = k_fold({str(n): () for n in range(30)}, folds=12, val_share=0.1, seed=0)
    assert [int(fold.name) for fold in made] == list(range(12))


def test_a_split_is_read_as_it_was_written(tmp_path: Path) -> None:
    folds = k_fold({str(n): () for n in range(30)}, folds=3, val_share=0.1, seed=0)
    split = Split(name="cv3", scheme="kfold", folds=folds, facts={"seed": 0})
    assert write_split(str(tmp_path), split)
    assert not write_split(str(tmp_path), split)
    found = read_split(str(tmp_path), "cv3")
    assert found.folds == split.folds
    assert found.digest == split.digest
    found.check_digest(split.digest)
    with pytest.raises(SplitError, match="split cv3: expected the one with digest abc"):
        found.check_digest("abc")
    assert split.held_out == {str(n) for n in range(30)}


def test_a_leaking_split_is_not_written(tmp_path: Path) -> None:
    twice = (Fold(name="0", parts={"a": "test"}), Fold(name="1", parts={"a": "test"}))
    with pytest.raises(SplitError, match="patient a is tested in folds 0 and 1"):
        write_split(str(tmp_path), Split(name="cv", scheme="kfold", folds=twice))
    both = (Fold(name="0", parts={"TCGA-A2-A0T2-01A": "test", "TCGA-A2-A0T2-06A": "train"}),)
    with pytest.raises(SplitError, match="patient TCGA-A2-A0T2 is in test and train"):
        write_split(str(tmp_path), Split(name="l", scheme="label", folds=both))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden"])
def test_names_that_cannot_be_files(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--name"):
        split_file(str(tmp_path), name)
