"""SVS files: what OpenSlide reads from them, that both readers agree, and equal bytes."""

from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from mstar.cohorts.generated.config import GenerateConfig
from mstar.cohorts.generated.factors import SlideFactors, draw_case, slides_of
from mstar.cohorts.generated.paint import paint_slide, write_slide
from mstar.cohorts.generated.svs import write_svs
from mstar.slides.reader import open_slide

CONFIG = GenerateConfig(out="unused", slide_px=640, pen_fraction=0.0)


@pytest.fixture(scope="module")
def job() -> SlideFactors:
    """A slide of a mutated case."""
    case = next(c for c in (draw_case(CONFIG, i, 0.0) for i in range(9)) if c.mutation)
    return slides_of(CONFIG, case)[0]


@pytest.fixture(scope="module")
def slide(job: SlideFactors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That slide as a file."""
    path = tmp_path_factory.mktemp("svs") / "slide.svs"
    write_slide(path, job, CONFIG)
    return path


def test_openslide_reads_an_aperio_slide_with_its_resolution(
    slide: Path, job: SlideFactors
) -> None:
    with openslide.OpenSlide(slide) as opened:
        assert opened.properties["openslide.vendor"] == "aperio"
        assert float(opened.properties["openslide.mpp-x"]) == pytest.approx(job.mpp)
        assert float(opened.properties["openslide.mpp-y"]) == pytest.approx(job.mpp)
        assert opened.properties["openslide.objective-power"] == "20"
        assert opened.dimensions == (job.width_px, job.height_px)
        assert opened.level_count >= 2
        assert opened.level_downsamples[1] == pytest.approx(2, rel=0.01)
        assert opened.properties["openslide.level[0].tile-width"] == "256"


def test_resolution_tags_agree_with_the_description(slide: Path, job: SlideFactors) -> None:
    with tifffile.TiffFile(slide) as tiff:
        tags = tiff.pages[0].tags
        pixels, unit = tags["XResolution"].value, tags["ResolutionUnit"].value
        um = {2: 25_400, 3: 10_000}[int(unit)]
        assert um * pixels[1] / pixels[0] == pytest.approx(job.mpp, rel=1e-4)


def test_nothing_in_the_file_tells_when_or_where_it_was_made(slide: Path) -> None:
    with tifffile.TiffFile(slide) as tiff:
        names = {tag.name for page in tiff.pages for tag in page.tags}
    assert not names & {"DateTime", "HostComputer", "Artist", "XMP", "ExifTag"}


def test_both_readers_give_the_same_pixels(slide: Path) -> None:
    plain, fast = open_slide(slide, reader="openslide"), open_slide(slide, reader="vips")
    assert open_slide(slide).backend == "vips"
    for number, level in enumerate(plain.levels):
        window = 0, 0, level.width, level.height
        assert np.array_equal(plain.read(number, *window), fast.read(number, *window))


def test_pixels_survive_the_file(slide: Path, job: SlideFactors) -> None:
    painted = paint_slide(job, CONFIG).pixels
    opened = open_slide(slide)
    read = opened.read(0, 0, 0, opened.width_l0, opened.height_l0)
    assert read.shape == painted.shape
    assert np.abs(read.astype(int) - painted).mean() < 6  # JPEG with halved colour
    small = opened.read(1, 0, 0, opened.levels[1].width, opened.levels[1].height)
    assert np.abs(small.mean(axis=(0, 1)) - painted.mean(axis=(0, 1))).max() < 3


def test_equal_pixels_give_equal_bytes(slide: Path, job: SlideFactors, tmp_path: Path) -> None:
    write_slide(tmp_path / "again.svs", job, CONFIG)
    assert (tmp_path / "again.svs").read_bytes() == slide.read_bytes()


def test_mapped_pixels_give_the_bytes_of_those_in_memory(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (300, 401, 3), dtype=np.uint8)
    mapped = np.memmap(tmp_path / "raw", dtype=np.uint8, mode="w+", shape=pixels.shape)
    mapped[:] = pixels
    for name, source in (("a.svs", pixels), ("b.svs", mapped)):
        write_svs(tmp_path / name, source, mpp=0.25, objective=40.0, quality=80)
    assert (tmp_path / "a.svs").read_bytes() == (tmp_path / "b.svs").read_bytes()
    with openslide.OpenSlide(tmp_path / "a.svs") as opened:
        assert opened.properties["openslide.objective-power"] == "40"


def test_a_large_slide_goes_through_a_file(
    slide: Path, job: SlideFactors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mstar.cohorts.generated.paint._IN_MEMORY_BYTES", 1)
    write_slide(tmp_path / "large.svs", job, CONFIG)
    assert (tmp_path / "large.svs").read_bytes() == slide.read_bytes()
