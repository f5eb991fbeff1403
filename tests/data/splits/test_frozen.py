"""A split on disk is never overwritten silently, and edits are noticed."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from mstar.data.splits.frozen import SplitFile, read_frozen, rows_digest, write_frozen
from mstar.data.tables import Column
from mstar.errors import SplitError, TableError

COLUMNS = (Column(name="case_id"), Column(name="part", nullable=True))
FACTS = {"name": "x", "seed": 0}


def split_file(folder: Path) -> SplitFile:
    return SplitFile(folder=str(folder), stem="splits", columns=COLUMNS, keys=("case_id",))


def rows(**parts: str | None) -> pa.Table:
    return pa.table({"case_id": list(parts), "part": pa.array(parts.values(), pa.string())})


def test_digest_ignores_the_order_of_rows_only() -> None:
    assert rows_digest(rows(a="train", b="test")) == rows_digest(rows(b="test", a="train"))
    digests = {
        rows_digest(table)
        for table in (
            rows(a="train", b="test"),
            rows(a="test", b="train"),
            rows(a="train", b=None),
            rows(a="train", b=""),
            rows(a="train"),
            rows(a="train", b="test").rename_columns(["case_id", "fold"]),
        )
    }
    assert len(digests) == 6


def test_the_same_rows_again_change_nothing(tmp_path: Path) -> None:
    file = split_file(tmp_path)
    assert write_frozen(file, rows(a="train", b=None), FACTS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert not write_frozen(file, rows(b=None, a="train"), {"name": "other"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    table, facts = read_frozen(file)
    assert table.to_pylist() == rows(a="train", b=None).to_pylist()
    assert facts["digest"] == rows_digest(table)


def test_other_rows_are_refused_with_what_would_change(tmp_path: Path) -> None:
    file = split_file(tmp_path)
    write_frozen(file, rows(a="train", b="test", c="val"), FACTS)
    digest = read_frozen(file)[1]["digest"]
    before = (tmp_path / "splits.csv").read_bytes()
    with pytest.raises(SplitError, match="differs in 3 rows, 1 of them new") as caught:
        write_frozen(file, rows(a="train", b="train", d="val"), FACTS)
    for words in ("b (test → train)", "c (gone)", "d (new)", f"--replace {digest[:12]}"):
        assert words in str(caught.value)
    assert (tmp_path / "splits.csv").read_bytes() == before


@pytest.mark.parametrize("named", ["", "0123456789ab", "short"])
def test_only_the_right_digest_replaces(tmp_path: Path, named: str) -> None:
    file = split_file(tmp_path)
    write_frozen(file, rows(a="train"), FACTS)
    digest = read_frozen(file)[1]["digest"]
    with pytest.raises(SplitError):
        write_frozen(file, rows(a="test"), FACTS, replace=digest[:6] if named == "short" else named)


def test_a_replaced_split_is_kept(tmp_path: Path) -> None:
    file = split_file(tmp_path)
    write_frozen(file, rows(a="train"), FACTS)
    digest = read_frozen(file)[1]["digest"]
    assert write_frozen(file, rows(a="test"), FACTS, replace=digest[:12])
    assert read_frozen(file)[0].to_pylist() == rows(a="test").to_pylist()
    kept = SplitFile(
        folder=str(tmp_path),
        stem=f"splits/replaced/splits-{digest[:12]}",
        columns=COLUMNS,
        keys=("case_id",),
    )
    table, facts = read_frozen(kept)
    assert table.to_pylist() == rows(a="train").to_pylist()
    assert facts["digest"] == digest


def test_rows_may_be_added_but_not_changed(tmp_path: Path) -> None:
    file = split_file(tmp_path)
    write_frozen(file, rows(a="train"), FACTS)
    assert write_frozen(file, rows(a="train", b="test"), FACTS, only_adds=True)
    with pytest.raises(SplitError, match="a \\(train → test\\)"):
        write_frozen(file, rows(a="test", b="test", c="val"), FACTS, only_adds=True)
    with pytest.raises(SplitError, match="b \\(gone\\)"):
        write_frozen(file, rows(a="train"), FACTS, only_adds=True)


def test_an_edited_table_is_noticed(tmp_path: Path) -> None:
    file = split_file(tmp_path)
    write_frozen(file, rows(a="train", b="test"), FACTS)
    path = tmp_path / "splits.csv"
    path.write_text(path.read_text().replace("test", "train"))
    with pytest.raises(SplitError, match="the table was edited"):
        read_frozen(file)


def test_a_table_without_digest_is_nobodys_to_overwrite(tmp_path: Path) -> None:
    (tmp_path / "splits.csv").write_text("case_id,part\na,test\n")
    with pytest.raises(SplitError, match="a \\(test → train\\)"):
        write_frozen(split_file(tmp_path), rows(a="train"), FACTS)
    assert write_frozen(split_file(tmp_path), rows(a="test"), FACTS)  # what a killed writer left
    assert read_frozen(split_file(tmp_path))[1]["name"] == "x"


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"digest": 3})])
def test_a_broken_json_is_named(tmp_path: Path, text: str) -> None:
    write_frozen(split_file(tmp_path), rows(a="train"), FACTS)
    (tmp_path / "splits.json").write_text(text)
    with pytest.raises(SplitError, match=r"splits\.json: expected"):
        read_frozen(split_file(tmp_path))


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    write_frozen(split_file(tmp_path), rows(a="train"), FACTS)
    (tmp_path / "splits.csv").unlink()
    with pytest.raises(TableError, match="there is no such table"):
        read_frozen(split_file(tmp_path))
