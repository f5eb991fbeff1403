"""Bad label tables: an error with file, row and way out each."""

from pathlib import Path

import pytest

from mstar.data.label_tables import read_label_table
from mstar.data.tasks import Task
from mstar.errors import TableError
from support.label_tables import binary_task, survival_task, write_lines

AUTHORS = "case,slide,label,fold"
SURVIVAL = "Study,ID,Event,Status,WSI,split"
CASES, SLIDES, TIMES = binary_task(), binary_task(unit="slide"), survival_task()


@pytest.mark.parametrize(
    ("task", "head", "row", "problem"),
    [
        (CASES, AUTHORS, "P2,b,Mutated,test",
         r"column label: expected a class of ours \(wildtype, mutated\), got 'Mutated'\. Correct"),
        (CASES, AUTHORS, "P1,b,mutated,test",
         r"column fold \(fold 0\): expected 'train' as row 1 of case P1 has, got 'test'\. Rows of"),
        (CASES, AUTHORS, "P1,b,wildtype,train",
         r"column label: expected 'mutated' as row 1 of case P1 has, got 'wildtype'\."),
        (CASES, AUTHORS, "P1,a,mutated,train", r"column slides: expected each slide once.* Drop"),
        (CASES, AUTHORS, "P2,b,mutated,holdout", r"column fold: expected train, val.* Rename"),
        (CASES, AUTHORS, "P2,b,,test", r"column label: expected a value, got None.* Fill it in"),
        (CASES, AUTHORS, ",b,mutated,test", r"column case: expected a value, got None.* Fill"),
        (SLIDES, AUTHORS, "P2,a,mutated,test", r"column slide: .*\(row 1 has it too\).* Give it"),
        (CASES, AUTHORS, "P2,a,mutated,test", r"column slide: .*\(row 1 has it too\).* Give it"),
        (CASES, "case_id,slides,label,split", "P1,b,mutated,train", r"column case_id: .* Keep"),
        (CASES, "case_id,slide_id,label,fold_0", "P2,b,mutated,-2", r"column fold_0: .* Rename"),
        (TIMES, SURVIVAL, "X,P2,0,1,b,test", r"column Event: expected more than 0, got 0\.0\. Cor"),
        (TIMES, SURVIVAL, "X,P2,-3,1,b,test", r"column Event: expected more than 0, got -3\.0\."),
        (TIMES, SURVIVAL, "X,P2,soon,1,b,test", r"column Event: expected a finite num.* Corr"),
        (TIMES, SURVIVAL, "X,P2,9,2,b,test", r"column Status: expected 0/1, got '2'\. Correct"),
        (TIMES, SURVIVAL, "X,P1,12,1,b,test", r"column split \(fold 0\): expected 'train' as row"),
        (TIMES, SURVIVAL, "X,P1,13,1,b,train", r"column Event: expected 12\.0 as row 1"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named(tmp_path: Path, task: Task, head: str, row: str, problem: str) -> None:
    good = "P1,a,mutated,train" if task.has_class_labels else "X,P1,12,1,a,train"
    uri = write_lines(tmp_path, "bad.csv", head, good, row)
    with pytest.raises(TableError, match=rf"bad\.csv: row 2, .*{problem}"):
        read_label_table(uri, task)


def test_tables_of_no_dialect_or_of_the_other_kind_are_refused(tmp_path: Path) -> None:
    uri = write_lines(tmp_path, "t.csv", "name,image,class", "P1,a,mutated")
    with pytest.raises(TableError, match=r"header of one of these dialects.*name, image, class"):
        read_label_table(uri, CASES)
    uri = write_lines(tmp_path, "t.csv", SURVIVAL, "X,P1,12,1,a,train")
    with pytest.raises(TableError, match="expected classes for the classification task ours"):
        read_label_table(uri, CASES)
    uri = write_lines(tmp_path, "t.csv", AUTHORS, "P1,a,mutated,train")
    with pytest.raises(TableError, match="expected times and events for the survival task ours"):
        read_label_table(uri, TIMES)
    uri = write_lines(tmp_path, "t.csv", AUTHORS)
    with pytest.raises(TableError, match="expected rows, got a header alone"):
        read_label_table(uri, CASES)


def test_columns_that_are_named_but_out_of_place_are_refused(tmp_path: Path) -> None:
    uri = write_lines(tmp_path, "t.csv", "slide,case,label,fold", "a,P1,mutated,train")
    with pytest.raises(TableError, match=r"case, slide, label as the first three columns"):
        read_label_table(uri, CASES)


def test_real_and_generated_rows_are_never_in_one_table(tmp_path: Path) -> None:
    head = "case_id,slides,label,data_source"
    uri = write_lines(tmp_path, "t.csv", head, "P1,a,mutated,real", "P2,b,mutated,generated")
    with pytest.raises(TableError, match=r"row 2, column data_source: .* Make two tables"):
        read_label_table(uri, CASES)
