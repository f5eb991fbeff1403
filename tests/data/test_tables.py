"""Tables are read strictly: what is wrong is named by row and column, and nothing is guessed."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mstar.data.table_text import NULLS
from mstar.data.tables import Column, column_names, open_text, read_table, write_table
from mstar.errors import TableError

COLUMNS = (
    Column(name="case_id", unique=True, aliases=("PATIENT_ID",)),
    Column(name="months", kind="number", required=False, nullable=True),
    Column(name="event", kind="integer", required=False, nullable=True, allowed=("0", "1")),
)


def write(folder: Path, data: str | bytes, name: str = "t.csv") -> str:
    """A file of this content; its path."""
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


def refusal(uri: str, columns: tuple[Column, ...] = COLUMNS) -> str:
    """What the error says, whose first words are the file's name."""
    with pytest.raises(TableError) as caught:
        read_table(uri, columns)
    message = str(caught.value)
    assert message.startswith(f"{uri}: ")
    return message.removeprefix(f"{uri}: ")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("name,months\nA,1\n", ["column case_id (or PATIENT_ID)", "got name, months"]),
        ("case_id,months\nA,1\n,2\n", ["row 2", "column case_id", "a value", "an empty cell"]),
        ("case_id,months\nA,1\nNaN,2\n", ["row 2", "column case_id", "a value"]),
        ("case_id,months\nA,1\nB,2\nA,3\n", ["row 3", "column case_id", "row 1 has it", "'A'"]),
        ("case_id,months\nA,1\nB,soon\n", ["row 2", "column months", "number", "'soon'"]),
        ("case_id,months\nA,inf\n", ["row 1", "column months", "finite", "'inf'"]),
        ("case_id,months\nA,1e999\n", ["row 1", "column months", "finite", "'1e999'"]),
        ("case_id,event\nA,1\nB,0.5\n", ["row 2", "column event", "whole number", "'0.5'"]),
        ("case_id,event\nA,1\nB,2\n", ["row 2", "column event", "0/1", "'2'"]),
        ("case_id,event\nA,1\nB\n", ["row 2", "column case_id", "expected 2 cells, got 1"]),
        ("case_id,event\nA,1\n\nB,1,7\n", ["row 2", "column event", "expected 2 cells, got 3"]),
        ('case_id,event\nA,1\nB,"0\nC,1\n', ["row 2", "column event", "quote", "2 more lines"]),
        ("case_id;event\nA;1\n", ["got case_id;event", "by a semicolon", "by a comma"]),
        ("case_id\tevent\nA\t1\n", ["by a tab", "by a comma"]),
        ("case_id,case_id\nA,1\n", ["column case_id comes twice"]),
        ("Case_id,CASE_ID\nA,1\n", ["Case_id and CASE_ID are both taken for case_id"]),
        ("", ["empty file"]),
        ("\n\n", ["empty file"]),
        ("case_id,event\nA,1\nBé,0\n".encode("latin-1"), ["row 2", "column case_id", "UTF-8"]),
        ("case_id,é\nA,1\n".encode("latin-1"), ["header", "UTF-8"]),
        ("case_id,event\nA,1\n".encode("utf-16"), ["header", "UTF-8", "UTF-16"]),
    ],
)
def test_names_row_and_column(tmp_path: Path, data: str | bytes, words: list[str]) -> None:
    """Every malformed table is refused, and the message says where and what."""
    message = refusal(write(tmp_path, data))
    assert [word for word in words if word not in message] == []


def test_the_open_quote_error_does_not_show_the_text(tmp_path: Path) -> None:
    """What is swallowed may be a report, which no log may hold."""
    message = refusal(write(tmp_path, 'case_id,text\nA,"secret\nB,words\n'))
    assert "secret" not in message
    assert "words" not in message


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("t.csv.gz", b"case_id\nA\n", ["expected gzip", "Not a gzipped file"]),
        ("t.csv.gz", gzip.compress(b"case_id\n" + b"A\n" * 999)[:-12], ["expected gzip", "ended"]),
        ("t.csv.zip", b"case_id\nA\n", ["expected zip", "not a zip file"]),
        ("t.parquet", b"case_id\nA\n", ["expected Parquet"]),
        ("t.xlsx", b"PK", ["expected a name that ends in .csv", ".parquet"]),
    ],
)
def test_files_that_are_not_what_their_name_says(
    tmp_path: Path, name: str, data: bytes, words: list[str]
) -> None:
    """Broken packing is the table's trouble, not a bug of ours."""
    message = refusal(write(tmp_path, data, name))
    assert [word for word in words if word not in message] == []


def test_an_absent_table(tmp_path: Path) -> None:
    """Neither a missing file nor a folder is a table."""
    assert "there is no such table" in refusal(str(tmp_path / "absent.csv"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(Exception, match=r"folder\.csv"):
        read_table(str(tmp_path / "folder.csv"), COLUMNS)


def test_packed_tables_read_as_the_plain_one(tmp_path: Path) -> None:
    """Gzip and zip change nothing; what macOS adds to an archive is passed over."""
    data = b'case_id,months\nA,1\n"B,\nC",2.5\n'
    plain = read_table(write(tmp_path, data), COLUMNS)
    packed = write(tmp_path, gzip.compress(data), "t.csv.gz")
    with zipfile.ZipFile(tmp_path / "t.csv.zip", "w") as archive:
        archive.writestr("inner.csv", data)
        archive.writestr("__MACOSX/._inner.csv", b"x")
    assert read_table(packed, COLUMNS).equals(plain)
    assert read_table(str(tmp_path / "t.csv.zip"), COLUMNS).equals(plain)
    assert column_names(packed) == ["case_id", "months"]
    with open_text(packed) as file:
        assert file.read() == data


def test_an_archive_of_two_tables_is_refused(tmp_path: Path) -> None:
    """Which one is meant cannot be known."""
    with zipfile.ZipFile(tmp_path / "t.csv.zip", "w") as archive:
        archive.writestr("a.csv", "case_id\nA\n")
        archive.writestr("b.csv", "case_id\nA\n")
    assert "expected one file in the archive, got 2" in refusal(str(tmp_path / "t.csv.zip"))


def test_headers(tmp_path: Path) -> None:
    """A byte order mark, blanks, quotes, other cases, aliases and comments are no obstacle."""
    data = '\ufeff#note,\n# more\n" Patient_ID ", months ,"x,\ny"\r\n007, 1.5 ,z\r\n'
    uri = write(tmp_path, data)
    table = read_table(uri, COLUMNS, keep_others=True, comment="#")
    assert table.to_pydict() == {"case_id": ["007"], "months": [1.5], "x,\ny": ["z"]}
    assert column_names(uri, comment="#") == ["Patient_ID", "months", "x,\ny"]


def test_an_exact_name_wins_over_another_case(tmp_path: Path) -> None:
    """Only what would be a guess is refused."""
    uri = write(tmp_path, "CASE_ID,case_id,PATIENT_ID\n1,2,3\n")
    assert read_table(uri, COLUMNS).to_pydict() == {"case_id": ["2"]}


@pytest.mark.parametrize("data", ["case_id,months", "case_id,months\n"])
def test_a_header_alone_is_an_empty_table(tmp_path: Path, data: str) -> None:
    """No rows, but columns of the right types."""
    table = read_table(write(tmp_path, data), COLUMNS)
    assert len(table) == 0
    assert table.schema.types == [pa.string(), pa.float64()]


def test_parquet_reads_as_csv_would(tmp_path: Path) -> None:
    """Floats that stand for integers, lists, categories, NaN and booleans become the same text."""
    frame = pd.DataFrame(
        {
            "case_id": pd.Categorical(["A", "B", "C"]),
            "event": [1.0, np.nan, 0.0],
            "months": [1.5, np.nan, 3.0],
            "slides": [["x", "y"], [], None],
            "number": [7.0, 8.0, np.nan],
            "flag": [True, False, None],
        }
    )
    uri = str(tmp_path / "t.parquet")
    frame.to_parquet(uri)
    assert read_table(uri, COLUMNS, keep_others=True).to_pydict() == {
        "case_id": ["A", "B", "C"],
        "months": [1.5, None, 3.0],
        "event": [1, None, 0],
        "slides": ["x;y", None, None],
        "number": ["7", "8", None],
        "flag": ["true", "false", None],
    }


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array([["x"], ["y", None]]), ["row 2", "column slides", "list without nulls"]),
        (pa.array([{"a": 1}, None]), ["column slides", "struct"]),
        (pa.array([[["x"]], None]), ["column slides", "lists of text"]),
    ],
)
def test_parquet_cells_that_are_not_text(
    tmp_path: Path, column: pa.Array, words: list[str]
) -> None:
    """A null in a list would otherwise make the whole list vanish."""
    uri = str(tmp_path / "t.parquet")
    pq.write_table(pa.table({"case_id": ["A", "B"], "slides": column}), uri)
    message = refusal(uri, (*COLUMNS, Column(name="slides", nullable=True)))
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize("value", [1e300, -1e19, math.inf])
def test_parquet_floats_beyond_integers(tmp_path: Path, value: float) -> None:
    """Large whole floats stay numbers; infinity is refused with its row."""
    uri = str(tmp_path / "t.parquet")
    pq.write_table(pa.table({"case_id": ["A", "B"], "months": [1.0, value]}), uri)
    if math.isinf(value):
        assert "row 2, column months" in refusal(uri)
    else:
        assert read_table(uri, COLUMNS).column("months").to_pylist() == [1.0, value]


numbers = st.floats(allow_nan=False, allow_infinity=False)
cells = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), min_size=1), st.none()
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(st.tuples(cells, st.one_of(numbers, st.none())), max_size=6))
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.csv.gz", "t.parquet"])
def test_what_is_written_is_read(
    tmp_path: Path, name: str, rows: list[tuple[str | None, float | None]]
) -> None:
    """Every text and number survives the round trip; words for nothing come back as nothing."""
    texts = [None if text in NULLS else text for text, _ in rows]
    values = [value for _, value in rows]
    table = pa.table(
        {
            "number": pa.array(range(len(rows)), pa.int64()),
            "text": pa.array([text for text, _ in rows], pa.string()),
            "value": pa.array(values, pa.float64()),
        }
    )
    uri = str(tmp_path / name)
    write_table(uri, table)
    first = Path(uri).read_bytes()
    write_table(uri, table)
    assert Path(uri).read_bytes() == first
    wanted = (
        Column(name="number", kind="integer"),
        Column(name="text", nullable=True),
        Column(name="value", kind="number", nullable=True),
    )
    found = read_table(uri, wanted)
    assert found.column("text").to_pylist() == texts
    assert found.column("value").to_pylist() == values
    assert found.column("number").to_pylist() == list(range(len(rows)))


def test_agrees_with_pandas(tmp_path: Path) -> None:
    """An independent reader finds the same cells in a table of all sorts."""
    data = 'case_id,text,months\n007,"a ""b"", c\nd",+1e2\nx, y ,.5\n"é","",-3.\n'
    uri = write(tmp_path, data)
    frame = pd.read_csv(uri, dtype={"case_id": str, "text": str}, keep_default_na=True)
    table = read_table(uri, COLUMNS, keep_others=True)
    assert table.column("case_id").to_pylist() == frame["case_id"].tolist()
    assert table.column("months").to_pylist() == frame["months"].tolist()
    assert [t or None for t in table.column("text").to_pylist()] == [
        None if pd.isna(text) else text for text in frame["text"]
    ]


MILLIONS = 3_000_000
_READER = """
import json, resource, sys, time
from mstar.data.tables import Column, read_table
from mstar.errors import TableError
columns = (Column(name="case_id", unique=True), Column(name="label"),
           Column(name="months", kind="number"))
before = resource.getrusage(resource.RUSAGE_SELF)
start = time.process_time()
try:
    said = str(len(read_table(sys.argv[1], columns)))
except TableError as error:
    said = str(error)
after = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"said": said, "cpu_s": time.process_time() - start,
                  "grown_mb": (after.ru_maxrss - before.ru_maxrss) / 1024}))
"""


def _read_apart(uri: str) -> dict[str, float | str]:
    command = [sys.executable, "-c", _READER, uri]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    return dict(json.loads(done.stdout))


@pytest.mark.slow
def test_three_million_rows(tmp_path: Path) -> None:
    """Reading them is quick and takes a few times the file's size; faults at the end are named."""
    uri = str(tmp_path / "t.csv")
    with Path(uri).open("w") as file:
        file.write("case_id,label,months\n")
        file.writelines(f"CASE-{n:08d},label {n % 7},{n % 997}.5\n" for n in range(MILLIONS))
    size_mb = Path(uri).stat().st_size / 2**20
    good = _read_apart(uri)
    assert good["said"] == str(MILLIONS)
    assert float(good["cpu_s"]) < 20.0  # 3 s where nothing else runs
    assert float(good["grown_mb"]) < 8 * size_mb + 300
    for line, words in (
        (b"CASE-00000005,x,1\n", "row 3,000,001, column case_id"),
        (b"CASE-X,,1\n", "row 3,000,001, column label"),
        (b"CASE-X,x,soon\n", "row 3,000,001, column months"),
        (b"CASE-X,x\n", "row 3,000,001, column label"),
        (b"CASE-X,\xe9,1\n", "row 3,000,001, column label"),
    ):
        with Path(uri).open("r+b") as file:
            file.seek(0, 2)
            end = file.tell()
            file.write(line)
        bad = _read_apart(uri)
        with Path(uri).open("r+b") as file:
            file.truncate(end)
        assert words in str(bad["said"]), line
        assert float(bad["grown_mb"]) < 16 * size_mb + 600
