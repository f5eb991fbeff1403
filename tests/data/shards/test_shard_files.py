"""The format: what a shard and its index look like, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mstar.data.shards.format import (
    ShardIndex,
    decode_targets,
    encode_targets,
    read_index,
    shard_schema,
    shards_folder,
)
from mstar.data.shards.preview import draw_sheet, to_jpeg
from mstar.data.shards.writer import ShardLayout, mean_and_std, num_shards
from mstar.errors import FeatureError
from mstar.slides.raw_tiles import decode
from support.shard_sets import slide_rows, write_shard_set


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ShardIndex]:
    folder = tmp_path_factory.mktemp("T") / "shards"
    index = write_shard_set(folder, num_rows=203, rows_per_group=16, rows_per_shard=64)
    return folder, index


def test_the_index_comes_back_as_it_was_written(made: tuple[Path, ShardIndex]) -> None:
    folder, index = made
    assert read_index(str(folder)) == read_index(str(folder.parent)) == index
    assert shards_folder(str(folder.parent)) == str(folder)


def test_row_groups_and_rows_are_found(made: tuple[Path, ShardIndex]) -> None:
    _, index = made
    groups = index.row_groups()
    assert sum(group.num_rows for group in groups) == index.num_rows == 203
    assert [group.first for group in groups] == [16 * n for n in range(13)]
    assert all(shard.num_rows <= 64 for shard in index.shards)
    for row in (0, 63, 64, 202):
        shard, place = index.locate(row)
        assert sum(one.num_rows for one in index.shards[:shard]) + place == row
        assert place < index.shards[shard].num_rows


def test_a_shard_is_plain_uncompressed_parquet(made: tuple[Path, ShardIndex]) -> None:
    folder, index = made
    for shard in index.shards:
        data = (folder / shard.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.num_bytes, shard.sha256)
        file = pq.ParquetFile(folder / shard.name)
        assert file.schema_arrow == shard_schema(index.target_dim)
        groups = [file.metadata.row_group(n) for n in range(file.num_row_groups)]
        assert tuple(group.num_rows for group in groups) == shard.row_groups
        for column in (groups[0].column(n) for n in range(6)):
            assert column.compression == "UNCOMPRESSED"
            dictionary = column.path_in_schema in ("slide_id", "case_id")
            assert column.has_dictionary_page == dictionary, column.path_in_schema


def test_equal_rows_give_equal_bytes(made: tuple[Path, ShardIndex], tmp_path: Path) -> None:
    _, index = made
    again = write_shard_set(tmp_path, num_rows=203, rows_per_group=16, rows_per_shard=64)
    assert again == index
    other = write_shard_set(
        tmp_path / "b", num_rows=203, rows_per_group=16, rows_per_shard=64, seed=1
    )
    assert other.shards != index.shards


def test_rows_keep_their_own_image_and_target(made: tuple[Path, ShardIndex]) -> None:
    folder, index = made
    slides = {f"slide-{n:02d}": slide_rows(n, 41) for n in range(5)}
    rows = [row for s in index.shards for row in pq.read_table(folder / s.name).to_pylist()]
    for row in rows[::7]:
        slide = slides[row["slide_id"]]
        place = slide.coords.tolist().index([row["x_l0"], row["y_l0"]])
        assert row["jpeg"] == slide.jpegs[place]
        assert row["target"] == slide.targets[place].tobytes()
        assert row["case_id"] == slide.case_id


def test_targets_survive_the_column_and_its_slices() -> None:
    targets = np.random.default_rng(0).standard_normal((9, 5)).astype(np.float16)
    column = encode_targets(targets)
    np.testing.assert_array_equal(decode_targets(column, 5), targets)
    np.testing.assert_array_equal(decode_targets(column.slice(3, 4), 5), targets[3:7])
    assert column[2].as_py() == targets[2].astype("<f2").tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema_version: expected 1, got 99"),
        ({"num_rows": 7}, "num_rows: expected 7 in all shards"),
        ({"counts": {}}, "the fields of ShardIndex"),
        ({"shards": None}, "the fields of ShardIndex"),
    ],
)
def test_an_index_that_contradicts_itself_is_refused(
    change: dict[str, Any], message: str, made: tuple[Path, ShardIndex], tmp_path: Path
) -> None:
    content = json.loads((made[0] / "index.json").read_text()) | change
    (tmp_path / "index.json").write_text(json.dumps(content))
    with pytest.raises(FeatureError, match=message):
        read_index(str(tmp_path))


def test_no_index_means_unfinished(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match="expected an index of finished shards"):
        read_index(str(tmp_path))
    (tmp_path / "index.json").write_text("{broken")
    with pytest.raises(FeatureError, match="expected JSON"):
        read_index(str(tmp_path))


def test_shards_are_as_few_as_the_size_allows_and_never_empty() -> None:
    layout = ShardLayout(target_dim=1, rows_per_group=10, shard_bytes=100)
    assert num_shards(100, 50, layout) == 1
    assert num_shards(101, 50, layout) == 2
    assert num_shards(10_000, 15, layout) == 2, "two row groups"
    assert num_shards(0, 0, layout) == 0


def test_mean_and_deviation_of_no_rows_are_zero() -> None:
    mean, std = mean_and_std([])
    assert float(np.sum(mean)) == float(np.sum(std)) == 0


def test_the_sheet_shows_every_row(made: tuple[Path, ShardIndex]) -> None:
    rows = slide_rows(0, 11, patch_px=32)
    sheet = draw_sheet(rows.jpegs, [f"a-long-name-of-a-slide-{n}" for n in range(11)], columns=4)
    assert sheet.shape[2] == 3
    assert decode(to_jpeg(sheet)).shape == sheet.shape
    cells = [sheet[4:148, 4 + n * 148 : 148 + n * 148] for n in range(4)]
    for cell, data in zip(cells, rows.jpegs, strict=False):
        np.testing.assert_allclose(cell.mean(axis=(0, 1)), decode(data).mean(axis=(0, 1)), atol=3)
