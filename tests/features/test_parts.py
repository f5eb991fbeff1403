"""Parts of a slide: however it was cut, it comes together with the bytes of the uncut one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mstar.errors import FeatureError
from mstar.features import files, parts
from mstar.schema import Grid
from support.feature_files import toy_features, toy_grid, toy_provenance

FINGERPRINT = "0123456789abcdef"
LAX = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def put(
    root: Path, grid: Grid, rows: np.ndarray, start: int, stop: int, bad: dict[int, str]
) -> None:
    """Writes the part [start, stop) of features that are known for every row."""
    reasons = {row: reason for row, reason in bad.items() if start <= row < stop}
    kept = [row for row in range(start, stop) if row not in reasons]
    part = parts.make_part(
        grid, start, stop, rows[kept], fingerprint=FINGERPRINT, unreadable=reasons
    )
    parts.write_part(str(root), part)


@LAX
@given(
    num=st.integers(1, 60),
    sizes=st.lists(st.integers(1, 25), min_size=1, max_size=2),
    bad_rows=st.sets(st.integers(0, 59), max_size=6),
    order=st.randoms(use_true_random=False),
    dtype=st.sampled_from(["float16", "float32"]),
)
def test_any_cut_assembles_to_the_bytes_of_the_uncut_slide(
    tmp_path_factory: pytest.TempPathFactory,
    num: int,
    sizes: list[int],
    bad_rows: set[int],
    order: object,
    dtype: str,
) -> None:
    root = tmp_path_factory.mktemp("parts")
    grid, rows = toy_grid(num=num), toy_features(num, dtype=dtype)
    bad = {row: f"reason {row}" for row in bad_rows if row < num}
    # two sizes: an earlier run's chunks lie among the present one's
    cuts = [(s, min(s + size, num)) for size in sizes for s in range(0, num, size)]
    order.shuffle(cuts)  # type: ignore[attr-defined]
    for start, stop in cuts:
        put(root, grid, rows, start, stop, bad)
    assert parts.complete(str(root), "s1", num)
    found = parts.assemble(str(root), grid, fingerprint=FINGERPRINT, dim=8, dtype=dtype)

    kept, left_out = files.leave_out(grid, bad)
    whole = np.delete(rows, sorted(bad), axis=0)
    again, again_out = files.leave_out(grid, found.unreadable)
    provenance = toy_provenance()
    files.write_features(root / "a", kept, whole, provenance, unreadable=left_out)
    files.write_features(root / "b", again, found.features, provenance, unreadable=again_out)
    assert (root / "a").read_bytes() == (root / "b").read_bytes()


@LAX
@given(
    num=st.integers(0, 30),
    ranges=st.lists(st.tuples(st.integers(0, 29), st.integers(1, 12)), max_size=8),
)
def test_uncovered_is_what_no_range_holds(num: int, ranges: list[tuple[int, int]]) -> None:
    given_ranges = [parts.PartRange(start=a, stop=a + n, uri="") for a, n in ranges]
    held = {row for a, n in ranges for row in range(a, a + n)}
    gaps = parts.uncovered(given_ranges, num)
    assert [row for a, b in gaps for row in range(a, b)] == [
        row for row in range(num) if row not in held
    ]


def test_missing_rows_are_named(tmp_path: Path) -> None:
    grid, rows = toy_grid(), toy_features()
    put(tmp_path, grid, rows, 0, 5, {})
    put(tmp_path, grid, rows, 7, 12, {})
    assert not parts.complete(str(tmp_path), "s1", 12)
    with pytest.raises(
        FeatureError, match=r"s1: parts: expected all of rows 0 to 12.*\[\(5, 7\)\]"
    ):
        parts.assemble(str(tmp_path), grid, fingerprint=FINGERPRINT, dim=8)


def test_an_empty_slide_is_complete_without_parts(tmp_path: Path) -> None:
    assert parts.complete(str(tmp_path), "s1", 0)
    found = parts.assemble(str(tmp_path), toy_grid(num=0), fingerprint=FINGERPRINT, dim=8)
    assert found.features.shape == (0, 8)


def test_a_slide_in_a_folder_named_like_another_slide_keeps_its_parts(tmp_path: Path) -> None:
    rows = toy_features()
    put(tmp_path, toy_grid("a"), rows, 0, 12, {})
    put(tmp_path, toy_grid("a/b"), rows, 0, 12, {})
    assert [p.stop for p in parts.list_parts(str(tmp_path), "a")] == [12]
    assert parts.drop_parts(str(tmp_path), "a") == 1
    assert not parts.list_parts(str(tmp_path), "a")
    assert parts.complete(str(tmp_path), "a/b", 12)


@pytest.mark.parametrize(
    ("grid", "fingerprint", "dim", "message"),
    [
        (toy_grid(), "f" * 16, 8, "fingerprint"),
        (toy_grid(coords=toy_grid().coords + 1), FINGERPRINT, 8, "digest of coords"),
        (toy_grid(), FINGERPRINT, 9, "float16 of 9, got float16 of 8"),
    ],
)
def test_parts_of_other_work_are_refused(
    tmp_path: Path, grid: Grid, fingerprint: str, dim: int, message: str
) -> None:
    put(tmp_path, toy_grid(), toy_features(), 0, 12, {})
    with pytest.raises(FeatureError, match=message):
        parts.assemble(str(tmp_path), grid, fingerprint=fingerprint, dim=dim)


@pytest.mark.parametrize("position", [3, 15, 30, 80, 200, -40, -1])
def test_a_changed_byte_anywhere_is_seen(tmp_path: Path, position: int) -> None:
    put(tmp_path, toy_grid(), toy_features(), 0, 12, {})
    path = tmp_path / "_state/parts/s1/0-12.part"
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)
    with pytest.raises(FeatureError, match=r"0-12\.part"):
        parts.read_part(str(path))


@pytest.mark.parametrize("share", [0.0, 0.03, 0.3, 0.9])
def test_a_truncated_part_is_seen(tmp_path: Path, share: float) -> None:
    put(tmp_path, toy_grid(), toy_features(), 0, 12, {})
    path = tmp_path / "_state/parts/s1/0-12.part"
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(FeatureError, match=r"0-12\.part"):
        parts.read_part(str(path))


def test_collect_stale_removes_what_nobody_will_use_and_nothing_else(tmp_path: Path) -> None:
    rows = toy_features()
    for name in ("done", "wanted", "moved", "unknown", "broken"):
        put(tmp_path, toy_grid(name), rows, 0, 6, {})
    other = parts.make_part(toy_grid("wanted"), 6, 12, rows[6:], fingerprint="f" * 16)
    parts.write_part(str(tmp_path), other)
    (tmp_path / "_state/parts/broken/0-6.part").write_bytes(b"mstar part 1\n" + b"\xff" * 60)
    (tmp_path / "_state/parts/stray.part").write_bytes(b"not ours")
    grids = {name: toy_grid(name) for name in ("wanted", "broken")}
    grids["moved"] = toy_grid("moved", coords=toy_grid().coords + 1)
    removed = parts.collect_stale(
        str(tmp_path),
        is_done=lambda slide_id: slide_id == "done",
        fingerprint=FINGERPRINT,
        grid_of=grids.get,
    )
    assert removed == 4
    left = {p.relative_to(tmp_path / "_state/parts").as_posix() for p in tmp_path.rglob("*.part")}
    assert left == {"wanted/0-6.part", "unknown/0-6.part", "stray.part"}
