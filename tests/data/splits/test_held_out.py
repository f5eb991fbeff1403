"""Tables of tasks as the field writes them, read for the patients they hold out."""

from pathlib import Path

import pytest

from mstar.data.splits.held_out import read_task_table, read_task_tables
from mstar.errors import ConfigError, SplitError, TableError

TABLES = {
    "ours": "case_id,slides,label,split,data_source\na,s,0,train,real\nb,s,0,val,real\nc,s,0,,real",
    "mstar diagnosis": "case,slide,label,fold\na,s1,0,train\na,s2,0,train\nb,s3,1,validation",
    "mstar survival": "Study,ID,Event,Status,WSI,split\nBRCA,a,1,1,s,train\nBRCA,b,2,0,s,Test",
    "five folds": "case,slide,label,fold1,fold2\na,s,0,train,train\nb,s,1,test,train",
    "further split": "fold,case_id,part\n0,a,train\n0,b,test\n1,a,train\n1,b,train",
}


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    return str(path)


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_the_field(tmp_path: Path, name: str) -> None:
    assert read_task_table(write(tmp_path / "t.csv", TABLES[name])).patients == {"b"}


def test_patients_are_named_not_samples(tmp_path: Path) -> None:
    uri = write(tmp_path / "t.csv", "case_id,split\nTCGA-A2-A0T2-01A,test")
    assert read_task_table(uri).patients == {"TCGA-A2-A0T2"}


def test_folders_are_read_and_tables_without_parts_hold_nobody_out(tmp_path: Path) -> None:
    write(tmp_path / "labels/one.csv", "case_id,split\na,test")
    write(tmp_path / "labels/sub/two.tsv", "case_id\tfold\nb\tval")
    write(tmp_path / "labels/plain.csv", "case_id,label\nc,1")
    write(tmp_path / "labels/notes.md", "no table")
    tables = read_task_tables([str(tmp_path / "labels")])
    assert [sorted(table.patients) for table in tables] == [["a"], [], ["b"]]
    assert [table.has_parts for table in tables] == [True, False, True]


def test_a_named_table_must_have_parts(tmp_path: Path) -> None:
    uri = write(tmp_path / "plain.csv", "case_id,label\nc,1")
    with pytest.raises(
        TableError, match=r"expected a column part, split, fold .* got case_id, label"
    ):
        read_task_tables([uri])


def test_a_place_without_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"found none. Correct the path"):
        read_task_tables([str(tmp_path / "nowhere")])


def test_an_unknown_part_names_file_and_row(tmp_path: Path) -> None:
    uri = write(tmp_path / "t.csv", "case_id,split\na,train\nb,3")
    with pytest.raises(SplitError, match=r"t\.csv: row 2, column split: expected .* got '3'"):
        read_task_table(uri)


@pytest.mark.parametrize(
    "text",
    [
        "case_id,split\na,train\na,test",
        "case,slide,label,fold1\na,s,0,train\na,t,0,test",
        "case_id,fold\nTCGA-A2-A0T2-01A,train\nTCGA-A2-A0T2-06A,val",
    ],
)
def test_a_patient_in_two_parts_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(SplitError, match=r"patient .* is in .* and .*"):
        read_task_table(write(tmp_path / "t.csv", text))
