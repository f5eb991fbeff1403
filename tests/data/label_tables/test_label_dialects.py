"""Dialects of label tables: each is read into the same samples."""

from pathlib import Path

import pandas as pd
import pytest

from mstar.data.label_tables import LabelTable, read_label_table
from mstar.data.label_tables.finding import find_label_tables
from mstar.data.labels import ClassLabel, SurvivalLabel, write_class_labels, write_survival_labels
from mstar.data.task_registry import read_task_registry
from mstar.errors import ConfigError, TableError
from support.label_tables import binary_task, survival_task, write_lines

SLIDES = binary_task(unit="slide")


def parts(table: LabelTable, fold: str = "0") -> list[str]:
    return [sample.folds.get(fold, "") for sample in table.samples]


def test_our_own_tables_read_back(tmp_path: Path) -> None:
    uri = str(tmp_path / "ours.csv")
    write_class_labels(
        uri,
        [
            ClassLabel(case_id="007", slides=("s1", "s2"), label="mutated", split="train"),
            ClassLabel(case_id="P2", slides=(), label="wildtype", split="test"),
        ],
    )
    table = read_label_table(uri, binary_task())
    assert (table.dialect, table.folds, table.data_source) == ("mstar", ("0",), "real")
    assert [(s.case_id, s.slides, s.label, s.row) for s in table.samples] == [
        ("007", ("s1", "s2"), 1, 1),
        ("P2", (), 0, 2),
    ]
    assert parts(table) == ["train", "test"]
    times = SurvivalLabel(
        case_id="P1", slides=("s",), time_months=3.5, event=1, data_source="generated"
    )
    write_survival_labels(uri, [times])
    table = read_label_table(uri, survival_task())
    assert (table.folds, table.data_source) == ((), "generated")  # no part: the registry decides
    assert (table.samples[0].time_months, table.samples[0].event) == (3.5, True)


def test_the_authors_classification_by_position(tmp_path: Path) -> None:
    """Columns are taken by place, an index is passed over, `;` joins slides, ids stay text."""
    uri = write_lines(
        tmp_path,
        "t.csv",
        ",patient,wsi,diagnosis,fold",
        "0,0012,a;b,mutated,train",
        "1,0013,c,wildtype,val",
        "2,0014,d,mutated,test",
    )
    table = read_label_table(uri, SLIDES)
    assert table.dialect == "mstar-classification"
    assert [s.case_id for s in table.samples] == ["0012", "0013", "0014"]
    assert [s.slides for s in table.samples] == [("a", "b"), ("c",), ("d",)]
    assert [s.label for s in table.samples] == [1, 0, 1]
    assert parts(table) == ["train", "val", "test"]


def test_the_authors_five_folds(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "case": [f"P{n}" for n in range(10)],
            "slide": [f"s{n}" for n in range(10)],
            "label": ["mutated", "wildtype"] * 5,
            **{
                f"fold{k}": ["test" if n // 2 == k - 1 else "train" for n in range(10)]
                for k in range(5, 0, -1)
            },
        }
    )
    frame.to_csv(tmp_path / "t.csv", index=False)
    table = read_label_table(str(tmp_path / "t.csv"), binary_task())
    assert table.folds == ("1", "2", "3", "4", "5")
    for fold in table.folds:
        assert parts(table, fold) == frame[f"fold{fold}"].tolist()


def test_the_authors_survival_and_multimodal(tmp_path: Path) -> None:
    """Months in Event, Status 1 is the event, `validation` is val; of paths the name stays."""
    rows = (
        "BRCA,P1,12.5,1,/x/a.pt;/x/b.pt,{}train",
        "BRCA,P2,30,0,c.pt,{}validation",
        "BRCA,P3,7,0,,{}test",
    )
    plain = [row.format("") for row in rows]
    uri = write_lines(tmp_path, "t.csv", "Study,ID,Event,Status,WSI,split", *plain)
    table = read_label_table(uri, survival_task())
    assert table.dialect == "mstar-survival"
    assert [s.slides for s in table.samples] == [("a.pt", "b.pt"), ("c.pt",), ()]
    assert [s.time_months for s in table.samples] == [12.5, 30.0, 7.0]
    assert [s.event for s in table.samples] == [True, False, False]
    assert parts(table) == ["train", "val", "test"]
    both = [
        row.format(f"{rna},") for row, rna in zip(rows, ("rna/P1.csv", "", "P3.csv"), strict=True)
    ]
    uri = write_lines(tmp_path, "m.csv", "Study,ID,Event,Status,WSI,RNA,split", *both)
    table = read_label_table(uri, survival_task(kind="fusion_survival"))
    assert table.dialect == "mstar-multimodal"
    assert [s.rna for s in table.samples] == ["P1.csv", None, "P3.csv"]


@pytest.mark.parametrize("unit", ["slide", "case"])
def test_clam_with_its_splits(tmp_path: Path, unit: str) -> None:
    """Padded columns of slide ids; a case of two slides is two samples, or one."""
    uri = write_lines(
        tmp_path,
        "ours.csv",
        "case_id,slide_id,label",
        *("P1,s1.svs,mutated", "P1,s2.svs,mutated", "P2,s3.svs,wildtype", "P3,s4.svs,mutated"),
    )
    for fold, last in enumerate(("s3", "s4")):
        first = {"s3": "s4", "s4": "s3"}[last]
        frame = pd.DataFrame({"train": ["s1", "s2"], "val": [first, None], "test": [last, None]})
        (tmp_path / "ours_splits").mkdir(exist_ok=True)
        frame.to_csv(tmp_path / f"ours_splits/splits_{fold}.csv")
    (tmp_path / "ours_splits/splits_0_descriptor.csv").write_text(",train\nmutated,1\n")
    table = read_label_table(uri, binary_task(unit=unit))
    assert (table.dialect, table.folds) == ("clam", ("0", "1"))
    head = ["train", "train"] if unit == "slide" else ["train"]
    assert parts(table, "0") == [*head, "test", "val"]
    assert parts(table, "1") == [*head, "val", "test"]
    assert sum(len(sample.slides) for sample in table.samples) == 4


def test_clam_splits_of_booleans_and_of_cases(tmp_path: Path) -> None:
    uri = write_lines(
        tmp_path, "ours.csv", "case_id,slide_id,label", "P1,s1,mutated", "P2,s2,wildtype"
    )
    write_lines(tmp_path, "b/splits_0_bool.csv", ",train,val,test", "s1,True,False,False",
                "s2,False,False,True")  # fmt: skip
    assert parts(read_label_table(uri, SLIDES, splits=str(tmp_path / "b"))) == ["train", "test"]
    write_lines(tmp_path, "c/splits_0.csv", ",train,val", "0,P2,P1")
    assert parts(read_label_table(uri, SLIDES, splits=str(tmp_path / "c"))) == ["val", "train"]
    write_lines(tmp_path, "d/splits_0.csv", ",train,val", "0,s1,s9")
    with pytest.raises(TableError, match=r"d/splits_0.csv: row 1, column val: .*got 's9'"):
        read_label_table(uri, SLIDES, splits=str(tmp_path / "d"))
    write_lines(tmp_path, "e/splits_0.csv", ",train,val", "0,s1,s1")
    with pytest.raises(TableError, match="in one part"):
        read_label_table(uri, SLIDES, splits=str(tmp_path / "e"))
    with pytest.raises(TableError, match=r"expected CLAM's splits_0.csv"):
        read_label_table(uri, SLIDES, splits=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "config",
    [
        "task_col: tp53\nsample_col: case_id\nlabel_dict:\n  0: wildtype  # first\n  1: mutated\n",
        "task_col: 'tp53'\nlabel_dict: {0: wildtype, 1: mutated}\nmetrics:\n  - auc\n",
    ],
)
def test_patho_bench(tmp_path: Path, config: str) -> None:
    """A number means what label_dict says; -1 and an empty cell are no part."""
    uri = write_lines(
        tmp_path,
        "ours/k=all.tsv",
        "\tcase_id\tslide_id\ttp53\tage\tfold_0\tfold_1",
        "0\t01\ts1\t1\t60\ttrain\ttest",
        "1\t01\ts2\t1\t60\ttrain\ttest",
        "2\t02\ts3\t0\t50\ttest\t-1",
    )
    (tmp_path / "ours/config.yaml").write_text(config)
    assert find_label_tables(str(tmp_path)) == {"ours": uri}
    table = read_label_table(uri, binary_task())
    assert (table.dialect, table.folds) == ("patho-bench", ("0", "1"))
    assert [(s.case_id, s.slides, s.label) for s in table.samples] == [
        ("01", ("s1", "s2"), 1),
        ("02", ("s3",), 0),
    ]
    assert parts(table, "1") == ["test", ""]
    swapped = binary_task(class_names=("mutated", "wildtype"))  # the code is the task's
    assert [s.label for s in read_label_table(uri, swapped).samples] == [0, 1]


def test_patho_bench_survival_in_days(tmp_path: Path) -> None:
    head = "case_id\tslide_id\tOS_event\tOS_days\tfold_0"
    uri = write_lines(tmp_path, "t.tsv", head, "P1\ts1\t1\t365.25\ttrain", "P2\ts2\t0\t30\ttest")
    table = read_label_table(uri, survival_task())
    assert table.samples[0].time_months == pytest.approx(12.0)
    assert [s.event for s in table.samples] == [True, False]
    other = write_lines(tmp_path, "u.tsv", head.replace("OS_days", "days"), "P1\ts1\t1\t9\ttrain")
    with pytest.raises(TableError, match="_days and one <name>_event"):
        read_label_table(other, survival_task())


def test_numbers_without_label_dict_are_no_classes(tmp_path: Path) -> None:
    uri = write_lines(tmp_path, "t.tsv", "case_id\tslide_id\ttp53\tfold_0", "P1\ts1\t1\ttrain")
    with pytest.raises(TableError, match=r"row 1, column tp53: expected a class of ours"):
        read_label_table(uri, binary_task())


def test_codes_do_not_depend_on_the_classes_of_the_file(tmp_path: Path) -> None:
    """A file that lacks the first class: sorted categories would number it from 0."""
    registry = read_task_registry()
    lines = ("case,slide,label,fold", "P1,a,STAD_NOS,test", "P2,b,signet_ring,test")
    uri = write_lines(tmp_path, "yn1_path_subtype.csv", *lines)
    table = read_label_table(uri, registry.get("yn1_path_subtype"))
    assert [s.label for s in table.samples] == [2, 1]


def test_the_published_camelyon_table(tmp_path: Path) -> None:
    lines = ("case,slide,label,fold", "patient_004_node_4,patient_004_node_4,tumor,train")
    uri = write_lines(tmp_path, "t.csv", *lines)
    sample = read_label_table(uri, read_task_registry().get("camelyon_metastasis")).samples[0]
    assert (sample.label, sample.patient) == (1, "patient_004")


def test_a_column_of_patients_is_taken(tmp_path: Path) -> None:
    head = "case_id,slides,label,patient_id"
    uri = write_lines(tmp_path, "t.csv", head, "block1,a,mutated,007", "block2,b,wildtype,007")
    assert [s.patient for s in read_label_table(uri, binary_task()).samples] == ["007", "007"]


def test_tasks_without_published_classes_ask_for_them(tmp_path: Path) -> None:
    uri = write_lines(tmp_path, "t.csv", "case_id,slides,label", "P1,a,2")
    with pytest.raises(ConfigError, match="zj1_brca_er_level: the names of its classes"):
        read_label_table(uri, read_task_registry().get("zj1_brca_er_level"))


def test_tables_are_found_by_task(tmp_path: Path) -> None:
    for name in ("a.csv", "b.tsv", "c.csv.gz", "d.parquet", "readme.md", "a_splits/splits_0.csv"):
        write_lines(tmp_path, name, "x")
    assert sorted(find_label_tables(str(tmp_path))) == ["a", "b", "c", "d"]
    write_lines(tmp_path, "a.tsv", "x")
    with pytest.raises(TableError, match="one label table of a"):
        find_label_tables(str(tmp_path))
