"""Pictures of scores: a layer over the slide's thumbnail, and its highest and lowest patches."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from mstar.evidence.overlay import coloured, frame_l0, make_raster
from mstar.evidence.palette import NAME
from mstar.evidence.scores import PatchScores, SlideScores
from mstar.evidence.tiles import label
from mstar.schema import Grid
from mstar.slides.overview import contact_sheet
from mstar.slides.patches import read_patch
from mstar.slides.reader import Slide

THUMBNAIL_PX = 1600
OPACITY = 0.5  # over a thumbnail; on white the colours are full
CELL_PX = 224
_LONG_INCH = 7.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Opened:
    """A slide that can be looked at, with the grid that its patches are read by."""

    slide: Slide
    grid: Grid


def picture(scores: SlideScores, layer: PatchScores, opened: Opened | None, about: str) -> bytes:
    """A PNG: the layer's percentiles over the slide, or on white where it cannot be opened.

    about: what made the scores, for the second line of the title.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    width, height = frame_l0(scores)
    long_side = max(width, height)
    size = 1.6 + _LONG_INCH * width / long_side, 1.3 + _LONG_INCH * height / long_side
    figure = Figure(figsize=(max(size[0], 4.5), max(size[1], 3.0)), layout="constrained")
    axes = figure.subplots()
    if opened is not None:
        thumbnail = opened.slide.thumbnail(THUMBNAIL_PX)
        axes.imshow(thumbnail, extent=(0, width, height, 0), interpolation="antialiased")
    raster = make_raster(scores, layer.percentile)
    rows, columns = raster.values.shape
    right, bottom = columns * raster.downsample, rows * raster.downsample
    axes.imshow(
        coloured(raster),
        extent=(0, right, bottom, 0),
        interpolation="nearest",
        alpha=OPACITY if opened is not None else 1.0,
    )
    axes.set_xlim(*_span(scores, 0, width, opened))
    axes.set_ylim(*reversed(_span(scores, 1, height, opened)))
    low, high = float(layer.values.min()), float(layer.values.max())
    axes.set_title(
        _short(f"{scores.slide_id}: {label(layer)} ({low:.3g} to {high:.3g})")
        + f"\n{_short(about)}",
        fontsize=8,
    )
    axes.set_xlabel(f"px, level 0. {scores.warning}", fontsize=7)
    axes.tick_params(labelsize=6)
    scale = ScalarMappable(Normalize(0, 100), cmap=NAME)
    bar = figure.colorbar(scale, ax=axes, shrink=0.7)
    bar.set_label("percentile among this slide's patches", fontsize=7)
    bar.ax.tick_params(labelsize=6)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=130, metadata={"Software": None})
    return sink.getvalue()


def _span(scores: SlideScores, axis: int, whole: int, opened: Opened | None) -> tuple[float, float]:
    """All of the slide where it is shown, else what the patches cover and a little more."""
    if opened is not None:
        return 0.0, float(whole)
    own, margin = scores.coords_l0[:, axis], scores.patch_size_l0 / 2
    return float(own.min() - margin), float(own.max() + scores.patch_size_l0 + margin)


def patch_sheet(scores: SlideScores, layer: PatchScores, opened: Opened, count: int) -> Image.Image:
    """The `count` highest patches in a row, the lowest below; of fewer than twice as many, halves.

    Raises:
        PatchError: one cannot be read.
    """
    order = np.argsort(-layer.values, kind="stable")
    half = -(-len(order) // 2)  # no patch is in both rows
    count = min(count, half)
    rows = [("top", order[:count]), ("bottom", order[half:][::-1][:count])]
    cells = []
    for name, chosen in rows:
        for rank, at in enumerate(chosen.tolist(), start=1):
            x, y = scores.coords_l0[at].tolist()
            text = (
                f"{name} {rank}: {layer.values[at]:.3g}, {layer.percentile[at]:.1f} %, ({x}, {y})"
            )
            pixels: UInt8[np.ndarray, "h w 3"] = read_patch(opened.slide, opened.grid, at)
            cells.append((text, Image.fromarray(pixels)))
    sheet = contact_sheet(cells, columns=count, cell_px=CELL_PX)
    return _captioned(sheet, [f"{scores.slide_id}: {label(layer)}", scores.warning])


def _captioned(sheet: Image.Image, lines: Sequence[str]) -> Image.Image:
    """The sheet below some lines of text."""
    font = ImageFont.load_default(size=14)
    height = 8 + 18 * len(lines)
    widest = max(int(font.getlength(line)) for line in lines) + 16
    page = Image.new("RGB", (max(sheet.width, widest), sheet.height + height), "white")
    pen = ImageDraw.Draw(page)
    for at, line in enumerate(lines):
        pen.text((8, 6 + 18 * at), line, fill=(30, 30, 30), font=font)
    page.paste(sheet, (0, height))
    return page


def _short(text: str) -> str:
    return text if len(text) <= 95 else text[:94] + "…"
