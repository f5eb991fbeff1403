"""Tasks made ready: cut from registry, split or table; what leaks is refused."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mstar.data.label_tables import LabelTable, read_label_table
from mstar.data.splits.schemes import Split, k_fold
from mstar.data.task_data import TaskData, prepare_task, store_ids
from mstar.data.task_external import prepare_external
from mstar.data.task_registry import read_task_registry
from mstar.data.tasks import Task
from mstar.errors import ConfigError, FeatureError, SplitError
from mstar.features.store import FeatureStore
from support.label_tables import binary_task, some_registry, survival_task, write_lines

PARTS = ["train"] * 8 + ["val"] * 4 + ["test"] * 4
CASES = [f"P{n:02d}" for n in range(len(PARTS))]
STORE = {f"s{n:02d}" for n in range(len(PARTS))}
REGISTRY = some_registry(dict(zip(CASES, PARTS, strict=True)))
TASK = binary_task()


def labelled(
    tmp_path: Path, parts: Sequence[str] | None = None, task: Task = TASK, **fields: object
) -> LabelTable:
    """Sixteen cases whose classes, or events, alternate."""
    rows = []
    for n, case in enumerate(CASES):
        label = f"{n + 1},{n % 2}" if task.has_survival_labels else ("wildtype", "mutated")[n % 2]
        rows.append(f"{case},s{n:02d},{label},{parts[n] if parts else ''}")
    columns = "time_months,event" if task.has_survival_labels else "label"
    return read_label_table(
        write_lines(tmp_path, "ours.csv", f"case_id,slides,{columns},split", *rows), task
    )


def names(data: TaskData, fold: int = 0) -> dict[str, list[str]]:
    found = data.folds[fold]
    return {
        part: [data.samples[at].case_id for at in getattr(found, part)]
        for part in ("train", "val", "test")
    }


@pytest.mark.parametrize("task", [TASK, survival_task()], ids=["classes", "survival"])
def test_a_task_is_cut_from_the_registry(tmp_path: Path, task: Task) -> None:
    data = prepare_task(task, labelled(tmp_path, task=task), stores=[STORE], registry=REGISTRY)
    assert names(data) == {"train": CASES[:8], "val": CASES[8:12], "test": CASES[12:]}
    assert data.split_digest == REGISTRY.digest
    assert (data.dropped, data.leaked_patients, data.patients) == ({}, 0, tuple(CASES))
    assert all(part.dtype == np.int64 for part in (data.folds[0].train, data.folds[0].test))
    assert data.label_source.endswith("ours.csv")


def test_a_fold_of_its_own_must_agree_or_be_asked_for(tmp_path: Path) -> None:
    agreeing = labelled(tmp_path, PARTS)
    assert prepare_task(TASK, agreeing, stores=[STORE], registry=REGISTRY).split_digest == (
        REGISTRY.digest
    )
    other = labelled(tmp_path, [*PARTS[:7], "test", *PARTS[8:15], "train"])
    said = r"row 8, case P07: expected part train as split registry mstar says, got test; 2 rows"
    with pytest.raises(SplitError, match=rf"ours.csv: {said} like this.*--published-split"):
        prepare_task(TASK, other, stores=[STORE], registry=REGISTRY)
    data = prepare_task(TASK, other, stores=[STORE], registry=REGISTRY, published_split=True)
    assert names(data)["test"] == [CASES[7], *CASES[12:15]]
    assert data.leaked_patients == 1  # P07 was pretrained on
    assert data.split_digest != REGISTRY.digest


def test_without_a_registry_the_table_says_it_or_nobody_does(tmp_path: Path) -> None:
    data = prepare_task(TASK, labelled(tmp_path, PARTS), stores=[STORE])
    assert names(data)["val"] == CASES[8:12]
    elsewhere = some_registry({"X1": "train"})  # a registry of other cases
    again = prepare_task(TASK, labelled(tmp_path, PARTS), stores=[STORE], registry=elsewhere)
    assert again.split_digest == data.split_digest
    with pytest.raises(SplitError, match=r"expected a part of every row.*mstar cohort split"):
        prepare_task(TASK, labelled(tmp_path), stores=[STORE])


def test_cases_without_a_part_train_as_pretraining_saw_them(tmp_path: Path) -> None:
    parts = dict(zip(CASES, PARTS, strict=True)) | {"P00": "", "P01": ""}
    registry = some_registry(parts, seen=("P00", "P01"))
    data = prepare_task(TASK, labelled(tmp_path), stores=[STORE], registry=registry)
    assert names(data)["train"][:2] == ["P00", "P01"]
    dropping = prepare_task(
        TASK, labelled(tmp_path), stores=[STORE], registry=registry, unassigned="drop"
    )
    assert dropping.dropped == {"in no part of the split": 2}
    with pytest.raises(SplitError, match=r"row 1, case P00: expected a part"):
        prepare_task(TASK, labelled(tmp_path), stores=[STORE], registry=registry,
                     unassigned="error")  # fmt: skip
    stated = labelled(tmp_path, ["test", *PARTS[1:]])
    with pytest.raises(SplitError, match=r"row 1, case P00: held out here, but pretraining sees"):
        prepare_task(TASK, stated, stores=[STORE], registry=registry)
    unseen = some_registry(parts, seen=("P01",))
    data = prepare_task(TASK, stated, stores=[STORE], registry=unseen)
    assert names(data)["test"][0] == "P00"


def test_a_case_that_the_registry_lacks_is_not_guessed(tmp_path: Path) -> None:
    known = some_registry(dict(zip(CASES[:-1], PARTS, strict=False)))
    with pytest.raises(SplitError, match=r"row 16, case P15: expected a part"):
        prepare_task(TASK, labelled(tmp_path), stores=[STORE], registry=known)


def test_a_patient_in_two_parts_is_an_error_or_counted(tmp_path: Path) -> None:
    """CAMELYON17: the nodes of a patient lie in several folds."""
    task = read_task_registry().get("camelyon_metastasis")
    rows = [
        f"patient_{n // 2:03d}_node_{n},n{n},{('normal', 'tumor')[n % 2]},{part}"
        for n, part in enumerate(["train"] * 3 + ["val"] * 4 + ["test"] * 4 + ["train"])
    ]
    table = read_label_table(write_lines(tmp_path, "c.csv", "case,slide,label,fold", *rows), task)
    store = [{f"n{n}" for n in range(12)}]
    with pytest.raises(SplitError, match=r"c.csv: fold 0: patient patient_001 is in train \(row 3\)"
                       r" and val \(row 4\); 3 patients.*--published-split"):  # fmt: skip
        prepare_task(task, table, stores=store)
    data = prepare_task(task, table, stores=store, published_split=True)
    assert data.leaked_patients == 3
    assert len(set(data.patients)) == 6


def five_folds(tmp_path: Path) -> LabelTable:
    rows = [
        ",".join([case, f"s{n:02d}", ("wildtype", "mutated")[n // 4 % 2],
                  *("test" if n % 4 == k else "train" for k in range(4))])
        for n, case in enumerate(CASES)
    ]  # fmt: skip
    head = "case,slide,label,fold1,fold2,fold3,fold4"
    return read_label_table(write_lines(tmp_path, "f.csv", head, *rows), TASK)


def test_folds_without_validation_get_one_from_their_training_patients(tmp_path: Path) -> None:
    data = prepare_task(TASK, five_folds(tmp_path), stores=[STORE], val_share=0.34)
    assert [fold.name for fold in data.folds] == ["1", "2", "3", "4"]
    tested = [at for fold in data.folds for at in fold.test.tolist()]
    assert sorted(tested) == list(range(16))  # each once
    for fold in data.folds:
        assert len(fold.val) == 4
        assert sorted([*fold.train, *fold.val, *fold.test]) == list(range(16))
        assert {data.samples[at].label for at in fold.val} == {0, 1}  # stratified
    again = prepare_task(TASK, five_folds(tmp_path), stores=[STORE], val_share=0.34)
    assert [f.val.tolist() for f in again.folds] == [f.val.tolist() for f in data.folds]
    assert "34% of the training patients validate" in data.split_source


def test_a_further_split_stands_in_for_the_registry(tmp_path: Path) -> None:
    strata = {case: (str(n % 2),) for n, case in enumerate(CASES)}
    folds = k_fold(strata, folds=4, val_share=0.34, seed=0)
    split = Split(name="cv4", scheme="kfold", folds=folds)
    table = labelled(tmp_path)
    data = prepare_task(TASK, table, stores=[STORE], registry=REGISTRY, split=split)
    assert (len(data.folds), data.split_digest, data.split_source) == (4, split.digest, "split cv4")
    for fold, made in zip(range(4), folds, strict=True):
        assert names(data, fold)["test"] == list(made.cases_of("test"))
    del strata["P03"]
    without = k_fold(strata, folds=4, val_share=0.34, seed=0)
    fewer = Split(name="cv4", scheme="kfold", folds=without)
    with pytest.raises(SplitError, match=r"row 4, case P03: expected a case of split cv4"):
        prepare_task(TASK, table, stores=[STORE], split=fewer)


def test_missing_features_are_an_error_not_a_smaller_task(tmp_path: Path) -> None:
    half = set(sorted(STORE)[::2])
    with pytest.raises(FeatureError, match=r"ours.csv: row 2, case P01: expected features of slide "
                       r"s01, got none; 8 of 16 samples lack features, 0.0% are allowed \(8 of 16 "
                       r"slides found \(50.0%\).*Embed the other slides"):  # fmt: skip
        prepare_task(TASK, labelled(tmp_path), stores=[half], registry=REGISTRY)
    almost = STORE - {"s00"}
    with pytest.raises(FeatureError, match="1 of 16 samples"):
        prepare_task(TASK, labelled(tmp_path), stores=[almost], registry=REGISTRY)
    data = prepare_task(
        TASK, labelled(tmp_path), stores=[almost], registry=REGISTRY, max_missing=0.1
    )
    assert data.dropped == {"no features of all its slides": 1}
    assert names(data)["train"] == CASES[1:8]


def test_a_bag_is_never_made_smaller_silently(tmp_path: Path) -> None:
    rows = ["P00,s00;s01,mutated,train", "P02,s02,wildtype,train", "P03,,mutated,train"]
    rows += [f"P{n},s{n},{('wildtype', 'mutated')[n % 2]},{'val' if n < 12 else 'test'}"
             for n in range(10, 14)]  # fmt: skip
    table = read_label_table(
        write_lines(tmp_path, "t.csv", "case_id,slides,label,split", *rows), TASK
    )
    with pytest.raises(FeatureError, match=r"row 1, case P00: expected features of slide s01"):
        prepare_task(TASK, table, stores=[STORE - {"s01"}])
    data = prepare_task(TASK, table, stores=[STORE])
    assert data.dropped == {"no slide in the label table": 1}
    assert data.samples[0].slides == ("s00", "s01")


@pytest.mark.parametrize(("part", "meaning"), [("train", "trained"), ("val", "chosen"),
                                               ("test", "scored")])  # fmt: skip
def test_one_class_in_a_part_is_an_error(tmp_path: Path, part: str, meaning: str) -> None:
    rows = [
        f"{case},s{n:02d},{'mutated' if its == part or n % 2 else 'wildtype'},{its}"
        for n, (case, its) in enumerate(zip(CASES, PARTS, strict=True))
    ]
    table = read_label_table(write_lines(tmp_path, "t.csv", "case,slide,label,fold", *rows), TASK)
    row = PARTS.index(part) + 1
    said = f"row {row}, fold 0, part {part}: expected two classes or more, got mutated alone"
    with pytest.raises(SplitError, match=rf"t.csv: {said}.*{meaning}.*mstar cohort split"):
        prepare_task(TASK, table, stores=[STORE])


def test_survival_without_a_pair_and_empty_parts_are_errors(tmp_path: Path) -> None:
    task = survival_task()
    rows = [f"X,{case},{n + 1},{int(part != 'val')},s{n:02d},{part}"
            for n, (case, part) in enumerate(zip(CASES, PARTS, strict=True))]  # fmt: skip
    head = "Study,ID,Event,Status,WSI,split"
    table = read_label_table(write_lines(tmp_path, "t.csv", head, *rows), task)
    with pytest.raises(SplitError, match=r"t.csv: row 9, fold 0, part val: expected two patients"):
        prepare_task(task, table, stores=[STORE])
    untested = labelled(tmp_path, ["train"] * 8 + ["val"] * 8)
    with pytest.raises(SplitError, match="fold 0, part test: expected samples, got none"):
        prepare_task(TASK, untested, stores=[STORE])


def test_auxiliary_tasks_train_and_validate_only(tmp_path: Path) -> None:
    task = binary_task(split_policy="train_only", regime="training_only")
    data = prepare_task(task, labelled(tmp_path), stores=[STORE], val_share=0.25)
    found = names(data)
    assert (len(found["train"]), len(found["val"]), found["test"]) == (12, 4, [])
    cut = prepare_task(task, labelled(tmp_path), stores=[STORE], registry=REGISTRY)
    assert names(cut) == {"train": CASES[:8], "val": CASES[8:12], "test": []}
    assert cut.dropped == {"in no part of the split": 4}


def test_external_tasks_are_tested_whole(tmp_path: Path) -> None:
    task = binary_task(split_policy="test_only", regime="external")
    table = labelled(tmp_path, task=task)
    data = prepare_external(task, table, stores=[STORE])
    assert names(data) == {"train": [], "val": [], "test": CASES}
    one_cohort = prepare_external(task, table, stores=[STORE], registry=REGISTRY)
    assert names(one_cohort)["test"] == CASES[12:]
    assert one_cohort.dropped == {"in no part of the split": 12}
    with pytest.raises(SplitError, match=r"row 1, case P00: expected part test.*got train"):
        prepare_external(task, labelled(tmp_path, PARTS, task), stores=[STORE])


def test_external_tasks_share_no_patient_and_all_classes_with_their_source(tmp_path: Path) -> None:
    internal = prepare_task(TASK, labelled(tmp_path, PARTS), stores=[STORE])
    task = binary_task(split_policy="test_only", regime="external")
    table = labelled(tmp_path, task=task)
    with pytest.raises(SplitError, match=r"patient P00 is tested here.*; 12 patients like this"):
        prepare_external(task, table, stores=[STORE], internal=internal)
    counted = prepare_external(task, table, stores=[STORE], internal=internal, published_split=True)
    assert counted.leaked_patients == 12
    turned = binary_task(class_names=("mutated", "wildtype"))
    with pytest.raises(ConfigError, match=r"classes of ours in their order \(wildtype, mutated\)"):
        prepare_external(turned, table, stores=[STORE], internal=internal)


def test_a_task_that_trains_nothing_has_a_test_part_alone(tmp_path: Path) -> None:
    """Of the table's own parts, or all of it where the table is the published test fold."""
    task = binary_task(kind="zero_shot", split_policy="test_fold")
    data = prepare_task(task, labelled(tmp_path, PARTS, task), stores=[STORE])
    assert not len(data.folds[0].train)
    assert not len(data.folds[0].val)
    assert len(data.samples) == len(data.folds[0].test) == PARTS.count("test")
    whole = prepare_task(task, labelled(tmp_path, task=task), stores=[STORE])
    assert len(whole.folds[0].test) == len(whole.samples) == len(PARTS)


def test_digests_follow_the_data(tmp_path: Path) -> None:
    first = prepare_task(TASK, labelled(tmp_path, PARTS), stores=[STORE])
    second = prepare_task(TASK, labelled(tmp_path, PARTS), stores=[STORE])
    assert (first.digest, first.split_digest) == (second.digest, second.split_digest)
    moved = prepare_task(TASK, labelled(tmp_path, PARTS[::-1]), stores=[STORE])
    assert moved.digest == first.digest
    assert moved.split_digest != first.split_digest
    turned = binary_task(class_names=("mutated", "wildtype"))
    other = prepare_task(turned, labelled(tmp_path, PARTS, turned), stores=[STORE])
    assert other.digest != first.digest


def test_stores_of_one_encoder_are_joined_and_a_slide_lies_in_one(tmp_path: Path) -> None:
    roots = [str(tmp_path / name) for name in ("a", "b")]
    stores = [FeatureStore.open_or_create(root, {"encoder": "x"}) for root in roots]
    (tmp_path / "a/s1.h5").write_bytes(b"")
    (tmp_path / "b/s2.h5").write_bytes(b"")
    assert store_ids(stores) == {"s1", "s2"}
    (tmp_path / "b/s1.h5").write_bytes(b"")
    with pytest.raises(FeatureError, match=r"slide s1: .*/a and in .*/b"):
        store_ids(stores)
