"""libvips reads what it is proved to read as OpenSlide does; the rest is left to OpenSlide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from mstar.errors import SlideError
from mstar.slides.openslide_reader import OpenSlideSlide
from mstar.slides.reader import open_slide
from mstar.slides.tiff_pages import read_tiff_pages
from mstar.slides.vips_proof import disprove, match_pages
from mstar.slides.vips_reader import VipsSlide
from support.openslide_pixels import expected_pixels
from support.slides import SlideSpec, drop_tile, write_slide


def test_what_is_not_tiled_jpeg_is_left_to_openslide(tmp_path: Path) -> None:
    path = tmp_path / "raw.tif"
    pixels = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb")
    slide = open_slide(path)
    assert slide.backend == "openslide"
    assert np.array_equal(slide.read(0, 11, 22, 300, 200), pixels[22:222, 11:311])
    slide.close()
    with pytest.raises(SlideError, match="compression NONE, not JPEG"):
        open_slide(path, reader="vips")


def test_tiles_without_data_are_left_to_openslide_and_are_background(tmp_path: Path) -> None:
    path = drop_tile(write_slide(tmp_path / "glass.svs", SlideSpec(full=True)), tile=5)
    slide = open_slide(path)
    assert slide.backend == "openslide"
    assert (slide.read(0, 256, 256, 256, 256) == 255).all()
    assert (slide.read(0, 0, 0, 256, 256) != 255).any()
    slide.close()


def test_a_file_with_other_pixels_is_disproved(tmp_path: Path) -> None:
    """The same layout with other content must not pass as the slide."""
    one, two = (
        write_slide(tmp_path / f"{seed}.svs", SlideSpec(full=True, seed=seed)) for seed in (1, 2)
    )
    judge = OpenSlideSlide(one)
    pages = match_pages("aperio", judge.levels, read_tiff_pages(two))
    assert not isinstance(pages, str)
    impostor = VipsSlide(judge, two, pages)
    assert "pixels differ" in (disprove(impostor, judge) or "")
    impostor.close()


def test_levels_that_share_a_size_with_two_pages_are_refused(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.svs", SlideSpec())
    judge = OpenSlideSlide(path)
    pages = read_tiff_pages(path)
    assert "size of 2 TIFF pages" in str(match_pages("aperio", judge.levels, [*pages, pages[0]]))
    assert "vendor leica" in str(match_pages("leica", judge.levels, pages))
    judge.close()


def test_label_and_macro_are_no_levels(tmp_path: Path) -> None:
    """The file has them; nothing that a slide offers reaches them."""
    path = write_slide(tmp_path / "patient.svs", SlideSpec(extras=True, full=True))
    with openslide.OpenSlide(path) as plain:
        assert {"label", "macro", "thumbnail"} <= set(plain.associated_images)
    slide = open_slide(path)
    assert isinstance(slide, VipsSlide)
    assert [page.index for page in slide.pages] == [0, 2]
    slide.close()


@pytest.mark.parametrize("name", ["größe 日本.svs", "with space.svs", "a[page=1].svs", "q?*.svs"])
def test_names_are_taken_literally(name: str, tmp_path: Path) -> None:
    path = write_slide(tmp_path / name, SlideSpec(full=True))
    slide = open_slide(str(path))
    assert slide.backend == "vips"
    assert np.array_equal(slide.read(0, 3, 4, 64, 64), expected_pixels(path, 0, (3, 4), (64, 64)))
    slide.close()
