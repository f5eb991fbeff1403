"""Readers refuse damaged files and tiles, from every thread, and hold nothing after closing."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from mstar.errors import PatchError, SlideError
from mstar.slides.reader import ReaderChoice, open_slide
from mstar.slides.tiff_pages import TileCheck, looks_decodable
from support.openslide_pixels import READERS, expected_pixels
from support.slides import (
    SlideSpec,
    slide_pixels,
    spoil_tile,
    write_non_image,
    write_slide,
    write_truncated,
    write_zero_byte,
)

# ------------------------------------------------------------------------- broken files


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (write_truncated, "perhaps cut short"),
        (write_non_image, "no TIFF"),
        (write_zero_byte, "empty"),
        (lambda path: path, "no such file"),
        (lambda path: path.mkdir() or path, "folder without"),
    ],
)
def test_what_cannot_be_opened_is_named_with_the_reason(
    write: Callable[[Path], Path], reason: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "bad slide.svs")
    with pytest.raises(SlideError, match=reason) as caught:
        open_slide(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("damage", ["garbage", "cut", "overwritten"])
def test_a_damaged_tile_is_refused_every_time_and_costs_only_itself(
    damage: str, reader: ReaderChoice, tmp_path: Path
) -> None:
    """Libvips alone would give grey or, the second time, black: both are worse than an error."""
    path = write_slide(tmp_path / "a.svs", SlideSpec(full=True))
    sound = expected_pixels(path, 0, (512, 256), (256, 256))
    spoil_tile(path, tile=5, damage=damage)
    slide = open_slide(path, reader=reader)
    for _ in range(3):
        with pytest.raises(PatchError, match="cannot be decoded"):
            slide.read(0, 200, 200, 100, 100)
        assert np.array_equal(slide.read(0, 512, 256, 256, 256), sound)
    slide.close()


@pytest.mark.parametrize("trusting", [False, True])
@pytest.mark.parametrize("reader", READERS)
def test_no_thread_gets_a_made_up_pixel_beside_a_damaged_tile(
    reader: ReaderChoice, trusting: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight threads over all patches, many at the bad tile: an error there, right pixels elsewhere.

    `trusting` lets libvips run into the tile, as if its bytes had looked sound.
    """
    path = write_slide(tmp_path / "a.svs", SlideSpec(full=True))
    whole = expected_pixels(path, 0, (0, 0), (1024, 768))
    spoil_tile(path, tile=5)
    if trusting:
        monkeypatch.setattr(TileCheck, "sound", lambda *_: True)
    slide = open_slide(path, reader=reader)

    def right(place: tuple[int, int]) -> bool:
        x, y = place
        bad = x + 128 > 256 and x < 512 and y + 128 > 256 and y < 512
        try:
            pixels = slide.read(0, x, y, 128, 128)
        except PatchError:
            return bad
        return not bad and np.array_equal(pixels, whole[y : y + 128, x : x + 128])

    places = [(x, y) for y in range(0, 640, 96) for x in range(0, 896, 96)] * 3
    np.random.default_rng(0).shuffle(places)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(right, places))
    slide.close()


def test_truly_black_tiles_are_black(tmp_path: Path) -> None:
    """Black is how libvips shows a failed tile; a sound black tile must still be read."""
    pixels = slide_pixels(SlideSpec(full=True))
    pixels[256:512, 256:512] = 0
    slide = open_slide(write_slide(tmp_path / "a.svs", SlideSpec(full=True), pixels))
    assert slide.backend == "vips"
    assert slide.read(0, 256, 256, 256, 256).max() == 0
    slide.close()


def test_the_look_at_tile_bytes_knows_damage_from_soundness() -> None:
    jpeg = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = jpeg[1].tobytes()
    assert looks_decodable(data)
    assert looks_decodable(data + b"\0")  # padded to an even size
    middle = len(data) // 2
    for bad in (
        b"",
        data[:middle],
        data[:middle] + bytes(len(data) - middle),
        data[:middle] + bytes(600) + data[middle:],
        data[:middle] + b"\xff\xc4" + data[middle:],
        b"garbage!" * 100,
    ):
        assert not looks_decodable(bad)


# ------------------------------------------------------------------------- threads and memory


@pytest.mark.parametrize("reader", READERS)
def test_many_threads_read_what_one_reads(reader: ReaderChoice, real_slide: Path) -> None:
    places = np.random.default_rng(1).integers(-100, 2200, (120, 2)).tolist()
    slide = open_slide(real_slide, reader=reader)
    alone = [slide.read(0, x, y, 256, 256) for x, y in places]
    slide.close()
    slide = open_slide(real_slide, reader=reader)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda place: slide.read(0, *place, 256, 256), places))
    slide.close()
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_opening_and_closing_leaves_no_handle_and_no_memory(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.svs", SlideSpec(full=True, levels=3, downsample=2))

    def use() -> None:
        slide = open_slide(path)
        worker = threading.Thread(target=lambda: slide.read(1, 0, 0, 256, 256))
        worker.start()
        worker.join()
        slide.read(0, 10, 10, 600, 700)
        slide.thumbnail(128)
        slide.close()

    for _ in range(10):
        use()
    handles, memory = open_handles(), resident_bytes()
    for _ in range(60):
        use()
    assert open_handles() <= handles
    assert resident_bytes() - memory < 20e6  # one leaked slide a round would be over 100 MB


def open_handles() -> int:
    """File descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("reader", READERS)
def test_reading_after_close_is_an_error(reader: ReaderChoice, tmp_path: Path) -> None:
    slide = open_slide(write_slide(tmp_path / "a.svs"), reader=reader)
    slide.close()
    slide.close()  # twice is fine
    with pytest.raises(SlideError, match="closed"):
        slide.read(0, 0, 0, 10, 10)
