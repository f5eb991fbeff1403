"""What reading costs: patches of a slide to the encoder, into a shard, and out of a shard."""

import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from mstar.cli.measure_clock import Rate, core_seconds
from mstar.errors import ConfigError
from mstar.schema import Grid, SlideRef
from mstar.slides.reader import Slide, open_slide
from mstar.storage import objects
from mstar.storage.manifest import BadRow, read_slides

SLIDES = 3  # of the caller's that are looked at
SIDE_PX = 4096
PATCH_PX_L0 = 512


def reading(slides: str | None, encoder: str, seconds: float) -> Iterator[Rate]:
    """Seconds of a core per patch: to the encoder, into a shard, and out of a shard."""
    from mstar.models.encoder_table import find_encoder

    spec = find_encoder(encoder)
    with tempfile.TemporaryDirectory(prefix="mstar-measure-") as folder:
        refs = own_slides(slides) if slides else [made_up_slide(Path(folder))]
        opened = [_opened(ref) for ref in refs]
        try:
            if slides:
                open_s = statistics.fmean(core_s for _, _, core_s in opened)
                note = f"opened, tissue found, grid laid: {len(refs)} slides"
                yield Rate(name="slide_open_core_s", value=open_s, note=note)
            grids = [(slide, grid if slides else _from_level_0(grid)) for slide, grid, _ in opened]
            yield from _patches(grids, spec.input_px, spec.interpolation, seconds, bool(slides))
        finally:
            for slide, _, _ in opened:
                slide.close()


def own_slides(spec: str) -> list[SlideRef]:
    """The first usable slides that lie on a disk of this machine."""
    rows = (row for row in read_slides(spec) if not isinstance(row, BadRow))
    refs = list(islice((row for row in rows if objects.is_local(row.uri)), SLIDES))
    if not refs:
        raise ConfigError(f"--slides {spec}: expected slides on a disk here, got none. Copy some.")
    return refs


def made_up_slide(folder: Path) -> SlideRef:
    """A slide of 40x with tissue nearly everywhere; JPEG tiles of quality 80."""
    from mstar.cohorts.generated.svs import write_svs

    path = folder / "made-up.svs"
    write_svs(path, made_up_pixels(SIDE_PX), mpp=0.25, objective=40.0, quality=80)
    return SlideRef(slide_id="made-up", uri=str(path))


def made_up_pixels(side_px: int) -> UInt8[np.ndarray, "side side 3"]:
    """Eosin, nuclei and grain, so that JPEG has about as much to do as with tissue."""
    import cv2

    rng, tile_px = np.random.default_rng(0), 1024
    coarse = rng.standard_normal((tile_px // 8, tile_px // 8)).astype(np.float32)
    nuclei = np.clip(2 * cv2.resize(coarse, (tile_px, tile_px)) - 1.5, 0, 1)[..., None]
    grain = 9 * rng.standard_normal((tile_px, tile_px, 3))
    tile = np.array([215, 130, 185]) - nuclei * np.array([120, 70, 60]) + grain
    many = np.tile(np.clip(tile, 0, 255).astype(np.uint8), (side_px // tile_px,) * 2 + (1,))
    many[:64], many[:, :64] = 244, 244  # glass, or no tissue would stand out
    return np.asarray(many)


def _opened(ref: SlideRef) -> tuple[Slide, Grid, float]:
    """A slide, its grid, and the seconds of a core that it took."""
    from mstar.embed.config import EmbedConfig
    from mstar.embed.grids import build_grid

    began_s = time.process_time()
    slide = open_slide(objects.local_path(ref.uri))
    grid = build_grid(ref, slide, EmbedConfig(slides="", out="")).grid
    if not len(grid):
        raise ConfigError(f"slide {ref.slide_id}: expected tissue to read, got none. Name others.")
    return slide, grid, time.process_time() - began_s


def _from_level_0(grid: Grid) -> Grid:
    """As on most scanners' slides, which have no level of half the resolution."""
    inside = (grid.coords + PATCH_PX_L0 <= SIDE_PX).all(1)
    return replace(grid, read_level=0, read_px=PATCH_PX_L0, coords=grid.coords[inside])


def _patches(
    grids: list[tuple[Slide, Grid]], input_px: int, interpolation: str, seconds: float, own: bool
) -> Iterator[Rate]:
    from mstar.data.shards.decode import JpegDecoder
    from mstar.data.shards.pixels import ImageConfig, PatchImages
    from mstar.models.transforms import resize_patch
    from mstar.slides.patches import read_patch

    what = "own slides" if own else "made-up slide, 512 px on level 0"
    side_px = grids[0][1].output_px
    resize = partial(resize_patch, interpolation=interpolation)
    images = [PatchImages(s, g, ImageConfig(side_px=g.output_px), resize) for s, g in grids]
    places = [(at, row) for at, (_, grid) in enumerate(grids) for row in range(len(grid))]
    kept: list[bytes] = []

    def read(place: tuple[int, int]) -> None:
        slide, grid = grids[place[0]]
        resize_patch(read_patch(slide, grid, place[1]), input_px, interpolation)

    def store(place: tuple[int, int]) -> None:
        data = images[place[0]].read(place[1]).data
        kept[:] = [*kept[-63:], data]

    read_s = core_seconds(read, places, seconds)
    yield Rate(name="patch_read_core_s", value=read_s, note=f"{what} → {input_px} px")
    store_s = core_seconds(store, places, seconds / 2)
    yield Rate(name="shard_image_core_s", value=store_s, note=f"{what} → JPEG of {side_px} px")
    out = np.empty((1, side_px, side_px, 3), np.uint8)
    decoder = JpegDecoder(1)
    decode_s = core_seconds(
        lambda data: decoder.decode([(0, memoryview(data))], out), kept, seconds / 4
    )
    yield Rate(name="jpeg_decode_core_s", value=decode_s, note=f"stored patches of {side_px} px")
