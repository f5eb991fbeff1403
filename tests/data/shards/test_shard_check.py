"""The check finds what is wrong inside shards, and tells a shuffle from what is none."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg

from mstar.data.shards.check import Findings, ShardChecker, chance_present, shuffle_statistics
from mstar.data.shards.format import ShardIndex, shard_schema
from mstar.data.shards.writer import open_parquet
from support.shard_sets import write_shard_set

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ShardIndex]:
    folder = tmp_path_factory.mktemp("shards")
    return folder, write_shard_set(folder, num_rows=120, rows_per_group=10, rows_per_shard=60)


def problems(folder: Path, index: ShardIndex, **settings: Any) -> list[str]:
    checker = ShardChecker(str(folder), index, **{"sample_every": 1, **settings})
    for shard in index.shards:
        checker.check(shard)
    checker.finish()
    return [f"{one.where}: {one.what}" for one in checker.found.problems]


def rewritten(
    folder: Path, index: ShardIndex, out: Path, change: Callable[[Rows], Rows]
) -> ShardIndex:
    """The shards with other rows, and an index that vouches for them."""
    shards = []
    for number, shard in enumerate(index.shards):
        rows = pq.read_table(folder / shard.name).to_pylist()
        rows = change(rows) if number == 0 else rows
        table = pa.Table.from_pylist(rows, shard_schema(index.target_dim))
        with (out / shard.name).open("wb") as sink, open_parquet(sink, index.target_dim) as writer:  # type: ignore[arg-type]
            writer.write_table(table, row_group_size=10)
        data = (out / shard.name).read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        shards.append(replace(shard, num_bytes=len(data), sha256=sha256))
    return replace(index, shards=tuple(shards))


def test_sound_shards_have_no_problems(made: tuple[Path, ShardIndex]) -> None:
    assert problems(*made) == []
    assert problems(*made, sample_every=7, window_rows=25) == []


def broken_image(rows: Rows) -> Rows:
    return [row | {"jpeg": row["jpeg"][:60]} if n == 17 else row for n, row in enumerate(rows)]


def small_image(rows: Rows) -> Rows:
    small = simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8))
    return [row | {"jpeg": small} if n == 17 else row for n, row in enumerate(rows)]


def nan_target(rows: Rows) -> Rows:
    nan = np.full(16, np.nan, np.float16).tobytes()
    return [row | {"target": nan} if n == 17 else row for n, row in enumerate(rows)]


def other_targets(rows: Rows) -> Rows:
    return [row | {"target": np.full(16, 9, np.float16).tobytes()} for row in rows]


def twice(rows: Rows) -> Rows:
    return [*rows[:18], rows[17], *rows[19:]]


def swapped(rows: Rows) -> Rows:
    return [*rows[:17], rows[18], rows[17], *rows[19:]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (broken_image, "row 17 of slide .*: its image cannot be decoded"),
        (small_image, "row 17 of slide .*: expected an image of 32 × 32 px"),
        (nan_target, "row 17: its target is not finite"),
        (other_targets, "mean or deviation of targets is off"),
        (twice, r"patch \('slide-.*\) comes twice"),
        (swapped, "row 18 is not in the order of its hash"),
    ],
)
def test_what_is_wrong_with_a_row_is_named(
    change: Callable[[Rows], Rows], said: str, made: tuple[Path, ShardIndex], tmp_path: Path
) -> None:
    index = rewritten(*made, tmp_path, change)
    found = "\n".join(problems(tmp_path, index))
    assert re.search(said, found), found


def test_unchanged_rows_written_anew_are_sound(
    made: tuple[Path, ShardIndex], tmp_path: Path
) -> None:
    assert problems(tmp_path, rewritten(*made, tmp_path, lambda rows: rows)) == []


def test_targets_that_say_nothing_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    index = write_shard_set(folder, num_rows=20, rows_per_group=10, rows_per_shard=20)
    (tmp_path / "b").mkdir()
    same = rewritten(folder, index, tmp_path / "b", other_targets)
    assert any("all rows have the same target" in one for one in problems(tmp_path / "b", same))


def findings_of(slides: np.ndarray, window: int) -> Findings:
    """What a checker counts, of a sequence of slides."""
    found = Findings(rows=len(slides), slides=Counter(slides.tolist()))
    found.neighbours = int((slides[1:] == slides[:-1]).sum())
    for start in range(0, len(slides), window):
        part = slides[start : start + window]
        found.distinct.append((len(part), len(np.unique(part))))
    return found


def slides_of(rng: np.random.Generator, num_slides: int) -> np.ndarray:
    return np.repeat(np.arange(num_slides), rng.integers(1, 200, num_slides))


@pytest.mark.parametrize("num_slides", [3, 40, 800])
def test_a_random_order_passes_and_an_unshuffled_one_does_not(num_slides: int) -> None:
    rng = np.random.default_rng(num_slides)
    slides = slides_of(rng, num_slides)
    for _ in range(20):
        good = shuffle_statistics(findings_of(rng.permutation(slides), 1000))
        assert max(abs(one.deviations) for one in good) < 6
    bad = shuffle_statistics(findings_of(slides, 1000))
    assert max(abs(one.deviations) for one in bad) > 6


def test_a_shuffle_in_a_window_only_does_not_pass() -> None:
    """What a shuffle buffer of 2,000 rows makes of slides one after another."""
    rng = np.random.default_rng(0)
    slides = slides_of(rng, 400)
    windows = [rng.permutation(slides[at : at + 2000]) for at in range(0, len(slides), 2000)]
    distinct, neighbours = shuffle_statistics(findings_of(np.concatenate(windows), 10_000))
    assert distinct.deviations < -6
    assert neighbours.deviations > 6


def test_the_chance_of_a_slide_is_what_drawing_gives() -> None:
    counts = np.array([1.0, 2.0, 5.0, 30.0])
    slides = np.repeat(np.arange(4), counts.astype(int))
    rng = np.random.default_rng(0)
    seen = np.zeros(4)
    for _ in range(4000):
        seen[np.unique(rng.permutation(slides)[:9])] += 1
    np.testing.assert_allclose(chance_present(9, counts), seen / 4000, atol=0.03)
    np.testing.assert_array_equal(chance_present(38, counts), np.ones(4))
