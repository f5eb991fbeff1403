"""The journal: lines are whole or absent, and one sweep writes at a time."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from mstar.downstream.journal import FILE, FOLDER, Journal
from mstar.errors import ConfigError
from mstar.storage import objects


def test_lines_come_back_in_order(tmp_path: Path) -> None:
    """Numbers to the last bit."""
    lines = [{"study": f"s{i}", "score": 1 / (i + 3)} for i in range(5)]
    with closing(Journal(str(tmp_path / "out"))) as journal:
        for line in lines:
            journal.append(line)
    with closing(Journal(str(tmp_path / "out"))) as journal:
        assert journal.lines == lines


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_line_is_dropped_and_the_next_one_whole(tmp_path: Path, cut: int) -> None:
    """Whatever a dying driver left of it."""
    with closing(Journal(str(tmp_path))) as journal:
        journal.append({"study": "first"})
        journal.append({"study": "second, which is torn"})
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-cut])
    with closing(Journal(str(tmp_path))) as journal:
        assert journal.lines == [{"study": "first"}]
        journal.append({"study": "third"})
    with closing(Journal(str(tmp_path))) as journal:
        assert [line["study"] for line in journal.lines] == ["first", "third"]


def test_a_second_sweep_is_refused(tmp_path: Path) -> None:
    """Until the first has ended."""
    with closing(Journal(str(tmp_path))):
        with pytest.raises(ConfigError, match="another sweep is writing here"):
            Journal(str(tmp_path))
    Journal(str(tmp_path)).close()


def test_no_infinity_gets_in(tmp_path: Path) -> None:
    """It would be no JSON for others."""
    with closing(Journal(str(tmp_path))) as journal, pytest.raises(ValueError, match="JSON"):
        journal.append({"score": float("inf")})


def test_an_object_a_line_where_nothing_can_be_appended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on s3://, whose objects are written whole."""
    monkeypatch.setattr(objects, "is_local", lambda uri: False)
    monkeypatch.setattr(objects, "read_bytes", lambda uri: Path(uri).read_bytes())
    monkeypatch.setattr(objects, "write_whole", _write)
    monkeypatch.setattr(objects, "list_files", lambda root, suffix="": _listed(Path(root)))
    for number in range(3):
        with closing(Journal(str(tmp_path))) as journal:
            assert len(journal.lines) == number
            journal.append({"study": f"s{number}"})
    assert len(list((tmp_path / FOLDER).iterdir())) == 3


def _write(uri: str, data: bytes) -> None:
    Path(uri).parent.mkdir(exist_ok=True)
    assert not Path(uri).exists()
    Path(uri).write_bytes(data)


def _listed(root: Path) -> list[objects.FileInfo]:
    paths = root.iterdir() if root.exists() else ()
    return [objects.FileInfo(uri=str(p), rel=p.name, size_bytes=1, tag="t") for p in paths]
