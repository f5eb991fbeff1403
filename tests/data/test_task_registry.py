"""Registries: the older list, auxiliary tasks, users' rows, and choosing from them."""

from collections import Counter
from pathlib import Path

import pytest

from mstar.data.task_registry import REGISTRIES, read_task_registry
from mstar.data.tasks import read_tasks
from mstar.errors import ConfigError, TableError

PAPER = read_task_registry("mstar-97")
OLDER = read_task_registry("mstar-v1")


def own(tmp_path: Path, *rows: str, head: str = "task_id,kind,metric,classes,trained_on") -> str:
    path = tmp_path / "mine.csv"
    path.write_text("\n".join([head, *rows]) + "\n")
    return str(path)


def test_the_97_are_a_registry_and_auxiliary_tasks_lie_apart() -> None:
    assert PAPER.tasks == read_tasks()
    wanted = {task.trained_on for task in PAPER.tasks if task.trained_on}
    auxiliary = [task.task_id for task in PAPER.auxiliary]
    assert sorted(wanted - {task.task_id for task in PAPER.tasks}) == sorted(auxiliary)
    assert all(task.split_policy == "train_only" for task in PAPER.auxiliary)


def test_the_older_list_has_the_43_tasks_of_its_groups() -> None:
    """6 diagnosis, 6 molecular, 9 survival, 9 multimodal, 6 few-shot, 6 zero-shot, 1 report."""
    assert len(OLDER.tasks) == 43
    groups = Counter(task.category for task in OLDER.tasks)
    assert sorted(groups.values()) == [1, 6, 6, 6, 6, 9, 9]
    for task in OLDER.tasks:
        if task.split_sizes and task.class_counts:
            assert sum(task.split_sizes) == sum(task.class_counts) == task.num_samples
    assert not {task.task_id for task in OLDER.tasks} & PAPER.by_id.keys()
    rcc = OLDER.get("v1_rcc_dhmc")
    assert (rcc.split_sizes, len(rcc.class_names)) == ((392, 56, 115), 5)


def test_the_older_molecular_files_are_not_tasks_55_and_57() -> None:
    older = OLDER.get("v1_brca_molecular"), OLDER.get("v1_gbmlgg_idh1")
    newer = PAPER.get("tcga_brca_mol_subtype"), PAPER.get("tcga_gbmlgg_mol_subtype")
    assert [task.number for task in newer] == [55, 57]
    for before, after in zip(older, newer, strict=True):
        assert before.class_names != after.class_names
        assert before.num_samples != after.num_samples
    assert "task 55" in older[0].notes
    assert "task 57" in older[1].notes


def test_tasks_are_chosen_by_id_and_group_in_the_order_of_the_list() -> None:
    assert PAPER.select(["all"]) == PAPER.tasks
    chosen = PAPER.select(["tcga_crc_os,tcga_brca_os", "tcga_brca_os", "aux_tcga_stad_dfs"])
    ids = [task.task_id for task in chosen]
    assert ids == ["tcga_brca_os", "tcga_crc_os", "aux_tcga_stad_dfs"]
    assert len(PAPER.select(["survival"])) == 16
    assert len(PAPER.select(["classification"])) == 61  # ordinal ones among them
    assert len(PAPER.select(["zero_shot"])) == 8  # as a regime: retrieval too
    assert {task.number for task in PAPER.select(["pathological_staging"])} == {21}
    with pytest.raises(ConfigError, match=r"'tcga_brca_oss'.*Did you mean.* tcga_brca_os"):
        PAPER.select(["tcga_brca_oss"])


def test_external_tasks_pull_in_the_tasks_that_train_their_heads() -> None:
    ids = [
        task.task_id
        for task in PAPER.with_required(PAPER.select(["nfgc_lauren", "yn3_lauren", "zj1_os"]))
    ]
    assert ids == ["aux_tcga_stad_lauren", "nfgc_lauren", "yn3_lauren", "tcga_brca_os", "zj1_os"]
    assert len(PAPER.with_required(PAPER.tasks)) == 97 + 3


def test_users_add_tasks_without_touching_the_code(tmp_path: Path) -> None:
    uri = own(
        tmp_path,
        "our_grade,ordinal,macro_auc,low|mid|high,",
        "their_grade,ordinal,macro_auc,,our_grade",
    )
    registry = read_task_registry(own=[uri])
    assert len(registry.tasks) == 99
    theirs = registry.get("their_grade")
    assert theirs.class_names == ("low", "mid", "high")  # as of the task whose head it takes
    both = registry.with_required([theirs])
    assert [task.task_id for task in both] == ["our_grade", "their_grade"]


def test_users_fill_in_what_is_unpublished_and_change_nothing(tmp_path: Path) -> None:
    uri = own(tmp_path, "zj1_brca_er_level,ordinal,macro_auc,0|1|2|3,")
    task = read_task_registry(own=[uri]).get("zj1_brca_er_level")
    before = PAPER.get("zj1_brca_er_level")
    assert (before.class_names, task.class_names) == ((), ("0", "1", "2", "3"))
    assert (task.number, task.num_samples, task.split) == (51, 1548, before.split)
    for row, column in {
        "tcga_brca_os,classification,macro_auc,,": "kind",
        "tcga_brca_path_subtype,classification,macro_auc,ILC|IDC,": "classes",
    }.items():
        with pytest.raises(TableError, match=rf"mine.csv: row 1, column {column}: expected"):
            read_task_registry(own=[own(tmp_path, row)])


def test_label_aliases_can_be_added_to_a_packaged_task(tmp_path: Path) -> None:
    head = "task_id,kind,metric,label_aliases"
    row = "v1_bcnb_er,classification,macro_auc,Positive=positive|P=positive"
    registry = read_task_registry("mstar-v1", [own(tmp_path, row, head=head)])
    assert registry.get("v1_bcnb_er").code_of("P") == 1
    wrong = own(tmp_path, row.replace("P=positive", "P=plus"), head=head)
    with pytest.raises(TableError, match=r"row 1, column label_aliases: .*negative, positive"):
        read_task_registry("mstar-v1", [wrong])


def test_an_unknown_registry_or_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"'mstar-98': expected one of {', '.join(REGISTRIES)}"):
        read_task_registry("mstar-98")
    uri = own(tmp_path, "a,survival,c_index,,nobody")
    with pytest.raises(TableError, match="row 1, column trained_on"):
        read_task_registry(own=[uri])
