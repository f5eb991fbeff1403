"""Decoding into batches: the pixels of the codec, bad rows without weight, buffers used again."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
from PIL import Image

from mstar.data.shards.augment import AugmentConfig, augment, row_words
from mstar.data.shards.batches import BatchMaker, Seat
from mstar.data.shards.decode import JpegDecoder, PatchBatch, RowIdentity
from mstar.data.shards.faults import NAMES_KEPT, FaultLedger, RowFault
from mstar.data.shards.format import ShardIndex, decode_targets, encode_targets
from mstar.data.shards.order import NO_ROW, EpochOrder, OrderConfig
from mstar.data.shards.pieces import PieceTable, group_rows
from mstar.data.shards.read_ahead import ReadAhead
from mstar.data.shards.reader import ShardReader
from mstar.errors import ConfigError, TrainingError
from support.shard_sets import patch_image, write_shard_set

PX, DIM = 32, 16
ORDER = OrderConfig(batch_size=24, lanes=6)


def jpeg_of(image: np.ndarray) -> bytes:
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=95))


@pytest.fixture
def shards(tmp_path: Path) -> tuple[Path, ShardIndex]:
    """150 rows in three shards."""
    return tmp_path, write_shard_set(
        tmp_path, num_rows=150, rows_per_group=16, rows_per_shard=60, target_dim=DIM, patch_px=PX
    )


def ledger(share: float = 1.0) -> FaultLedger:
    return FaultLedger("T/shards", num_rows=150, max_share=share)


def batches(
    shards: tuple[Path, ShardIndex],
    seat: Seat | None = None,
    *,
    first_step: int = 0,
    faults: FaultLedger | None = None,
    augmentation: AugmentConfig | None = None,
    order: OrderConfig = ORDER,
    threads: int = 2,
) -> Iterator[PatchBatch]:
    """The batches of a worker, read and decoded here."""
    (folder, index), seat = shards, seat or Seat()
    epoch = EpochOrder(group_rows(index), order, epoch=0)
    pieces = epoch.pieces(seat.rank, seat.world_size, first_step)
    decoder = JpegDecoder(threads, augmentation)
    maker = BatchMaker(
        index,
        epoch,
        pieces,
        seat,
        first_step=first_step,
        decoder=decoder,
        faults=faults or ledger(),
        augmentation=augmentation,
    )
    table = PieceTable(index, pieces)
    source = ReadAhead(ShardReader(str(folder)), table, ahead_bytes=10**9, threads=1)
    arriving = iter(source)
    while maker.next_step < maker.num_steps:
        yield maker.make(arriving)
    assert next(arriving, None) is None
    source.close()
    decoder.close()


def whole(shards: tuple[Path, ShardIndex]) -> pa.Table:
    """All rows of the set in the order of the index, as Arrow reads them."""
    folder, index = shards
    return pa.concat_tables([pq.read_table(folder / shard.name) for shard in index.shards])


def rewrite(shards: tuple[Path, ShardIndex], shard: int, **columns: pa.Array) -> ShardIndex:
    """The set with other columns in one shard, of the same sizes in bytes."""
    folder, index = shards
    path = folder / index.shards[shard].name
    table = pq.read_table(path)
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), values)
    pq.write_table(
        table,
        path,
        row_group_size=16,
        compression="none",
        use_dictionary=["slide_id", "case_id"],
        write_statistics=False,
    )
    info = index.shards[shard]
    sized = type(info)(
        name=info.name,
        num_rows=info.num_rows,
        num_bytes=path.stat().st_size,
        sha256=info.sha256,
        row_groups=info.row_groups,
    )
    others = (*index.shards[:shard], sized, *index.shards[shard + 1 :])
    return type(index)(**{n: getattr(index, n) for n in index.__slots__} | {"shards": others})


@pytest.mark.parametrize("world_size", [1, 4])
def test_rows_are_those_of_the_files_and_come_once(
    shards: tuple[Path, ShardIndex], world_size: int
) -> None:
    table, seen = whole(shards), []
    targets = decode_targets(table["target"].combine_chunks(), DIM)
    for rank in range(world_size):
        for batch in batches(shards, Seat(rank=rank, world_size=world_size)):
            assert len(batch) == -(-6 // world_size) * 4  # the same for every rank and step
            assert ((batch.rows == NO_ROW) == (batch.weights == 0)).all()
            assert not batch.pixels[batch.rows == NO_ROW].any()
            names = batch.identities()
            for slot in np.flatnonzero(batch.rows != NO_ROW):
                row = int(batch.rows[slot])
                decoded = Image.open(io.BytesIO(table["jpeg"][row].as_py()))
                assert np.abs(np.asarray(decoded, int) - batch.pixels[slot]).max() <= 2
                assert (batch.targets[slot] == targets[row]).all()
                expected = {
                    name: table[name][row].as_py() for name in ("slide_id", "case_id", "x_l0")
                }
                found = names[slot]
                assert found is not None
                assert expected.items() <= {n: getattr(found, n) for n in expected}.items()
                seen.append(row)
    assert sorted(seen) == list(range(150))


def test_batches_are_those_of_the_order_and_a_resumed_worker_goes_on_equally(
    shards: tuple[Path, ShardIndex],
) -> None:
    epoch = EpochOrder(group_rows(shards[1]), ORDER, epoch=0)
    all_batches = list(batches(shards))
    for step, batch in enumerate(all_batches):
        expected = np.full(24, NO_ROW)
        for lane in range(6):
            rows = epoch.step_rows(step, lane)
            expected[lane * 4 : lane * 4 + len(rows)] = rows
        assert (batch.rows == expected).all()
    resumed = list(batches(shards, first_step=3))
    assert len(resumed) == len(all_batches) - 3
    for before, after in zip(all_batches[3:], resumed, strict=True):
        assert (before.rows == after.rows).all()
        assert (before.pixels == after.pixels).all()
        assert (before.targets == after.targets).all()


def test_windows_of_several_row_groups_come_in_the_order_too(
    shards: tuple[Path, ShardIndex],
) -> None:
    order = OrderConfig(batch_size=6, lanes=2, window_groups=3)
    epoch = EpochOrder(group_rows(shards[1]), order, epoch=0)
    for first_step in (0, 7):
        found = [batch.rows[:3] for batch in batches(shards, first_step=first_step, order=order)]
        lane = epoch.lane_rows(0)[first_step * 3 :]
        assert np.concatenate(found)[: len(lane)].tolist() == lane.tolist()


def test_bad_rows_lose_weight_and_are_named(shards: tuple[Path, ShardIndex]) -> None:
    table, first = whole(shards), shards[1].shards[0].num_rows
    jpegs = table["jpeg"].to_pylist()[:first]
    jpegs[3] = jpegs[3][:-6]
    jpegs[4] = b"no image"
    jpegs[5] = jpeg_of(np.zeros((16, 16, 3), np.uint8))
    jpegs[6] = jpeg_of(np.zeros((64, 64, 3), np.uint8))
    targets = decode_targets(table["target"].combine_chunks(), DIM)[:first].copy()
    targets[7, 2], targets[8, 0] = np.nan, np.inf
    broken = rewrite(shards, 0, jpeg=pa.array(jpegs, pa.binary()), target=encode_targets(targets))
    faults = ledger()
    for batch in batches((shards[0], broken), faults=faults):
        is_bad = np.isin(batch.rows, [3, 4, 5, 6, 7, 8])
        assert ((batch.weights == 0) == (is_bad | (batch.rows == NO_ROW))).all()
        assert batch.num_bad == is_bad.sum()
        assert not batch.pixels[is_bad].any()
        assert not batch.targets[is_bad].any()
        assert np.isfinite(batch.targets).all()
    assert faults.num_rows == {"jpeg": 4, "target": 2}
    told = {fault.name: fault.reason for fault in faults.first}
    for row, words in {3: "Premature", 5: "got 16 × 16", 6: "too small", 8: "finite"}.items():
        slide, x, y = (table[name][row].as_py() for name in ("slide_id", "x_l0", "y_l0"))
        assert words in told[f"slide {slide} at ({x}, {y})"]


def test_a_broken_shard_costs_its_rows_only(shards: tuple[Path, ShardIndex]) -> None:
    folder, index = shards
    (folder / index.shards[1].name).write_bytes(b"PAR1")
    first, count = index.shards[0].num_rows, index.shards[1].num_rows
    faults, seen = ledger(), []
    for batch in batches(shards, faults=faults):
        gone = (batch.rows >= first) & (batch.rows < first + count)
        assert ((batch.weights == 0) == (gone | (batch.rows == NO_ROW))).all()
        assert all(batch.identities()[slot] is None for slot in np.flatnonzero(gone))
        assert not batch.pixels[gone].any()
        seen += batch.rows[batch.weights > 0].tolist()
    assert sorted(seen) == [*range(first), *range(first + count, 150)]
    assert faults.num_rows == {"shard": count}
    assert "shard-00001.parquet, row group" in str(faults.first[0])


def test_too_many_bad_rows_stop_the_run_and_say_why(shards: tuple[Path, ShardIndex]) -> None:
    folder, index = shards
    (folder / index.shards[1].name).unlink()
    with pytest.raises(
        TrainingError, match=r"at most 15 rows .* in shards .*not there.*shards check"
    ):
        list(batches(shards, faults=ledger(0.1)))


def test_the_ledger_counts_all_and_names_the_first() -> None:
    faults = FaultLedger("T", num_rows=1000, max_share=0.5)
    for number in range(500):
        faults.add(RowFault(kind="jpeg", name=f"row {number}", reason="bad"))
    assert faults.total_rows == 500
    assert len(faults.first) == NAMES_KEPT
    with pytest.raises(TrainingError, match="got 501: 501 whose JPEG is broken"):
        faults.add(RowFault(kind="jpeg", name="one more", reason="bad"))


@pytest.mark.parametrize("threads", [1, 3])
def test_the_decoder_writes_its_places_only(threads: int) -> None:
    images = [patch_image(1, row, PX) for row in range(40)]
    out = np.full((60, PX, PX, 3), 7, np.uint8)
    decoder = JpegDecoder(threads)
    jpegs = [(slot, memoryview(jpeg_of(image))) for slot, image in enumerate(images)]
    jpegs[11] = (11, memoryview(b""))
    assert [slot for slot, _ in decoder.decode(jpegs, out)] == [11]
    decoder.close()
    assert (out[40:] == 7).all()
    assert not out[11].any()
    assert all(np.abs(out[i].astype(int) - images[i]).mean() < 8 for i in range(40) if i != 11)


def test_augmentation_follows_from_seed_epoch_and_row_alone(
    shards: tuple[Path, ShardIndex],
) -> None:
    config = AugmentConfig(flips=True, rotations=True, stain_jitter=0.2, seed=3)

    def by_row(found: Iterator[PatchBatch]) -> dict[int, np.ndarray]:
        return {
            int(row): pixels.copy()
            for batch in found
            for row, pixels in zip(batch.rows, batch.pixels, strict=True)
            if row != NO_ROW
        }

    alone = by_row(batches(shards, augmentation=config))
    plain = by_row(batches(shards))
    assert sum((alone[row] == plain[row]).all() for row in alone) < 15
    for rank in range(3):
        seat = Seat(rank=rank, world_size=3)
        for row, pixels in by_row(batches(shards, seat, augmentation=config, threads=3)).items():
            assert (pixels == alone[row]).all()
    off = AugmentConfig()
    assert not off.is_on
    assert all((plain[r] == p).all() for r, p in by_row(batches(shards, augmentation=off)).items())


def test_flips_and_turns_are_the_eight_of_a_square() -> None:
    config = AugmentConfig(flips=True, rotations=True)
    image = np.random.default_rng(0).integers(0, 255, (6, 6, 3)).astype(np.uint8)
    eight = {np.rot90(flip, k).tobytes() for flip in (image, image[::-1]) for k in range(4)}
    counts: dict[bytes, int] = {}
    for words in row_words(config, 0, np.arange(800)):
        changed = image.copy()
        augment(changed, words, config)
        counts[changed.tobytes()] = counts.get(changed.tobytes(), 0) + 1
    assert counts.keys() == eight
    assert min(counts.values()) > 60  # 100 each, give or take


def test_stain_jitter_changes_stain_and_leaves_white() -> None:
    config = AugmentConfig(stain_jitter=0.3)
    image = np.full((4, 4, 3), 255, np.uint8)
    image[:2] = (150, 80, 160)
    changed = [image.copy() for _ in range(20)]
    for pixels, words in zip(changed, row_words(config, 0, np.arange(20)), strict=True):
        augment(pixels, words, config)
        assert (pixels[2:] == 255).all()
    tissue = np.array([pixels[0, 0] for pixels in changed], int)
    assert tissue.std(axis=0).min() > 3
    assert np.abs(tissue - (150, 80, 160)).max() < 90
    unchanged = image.copy()
    augment(unchanged, np.full(3, 2**63, np.uint64), config)  # the middle of the range: factor 1
    assert np.abs(unchanged.astype(int) - image).max() <= 1
    with pytest.raises(ConfigError, match="stain_jitter"):
        AugmentConfig(stain_jitter=1.0)


def test_identities_read_well() -> None:
    name = RowIdentity(slide_id="S", case_id="C", x_l0=256, y_l0=512)
    assert str(name) == "slide S at (256, 512)"
