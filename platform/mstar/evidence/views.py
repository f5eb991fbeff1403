"""The files of one slide: scores, tiles, pictures, overlays.

<out>/<slide>/<slide>.geojson.gz          for QuPath
<out>/<slide>/<layer>.png, <layer>.tif    of every layer that is drawn
<out>/<slide>/<layer>-patches.png         its highest and lowest patches
<out>/<slide>/scores.parquet              written last: the slide is done
"""

import io
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from mstar.errors import MstarError, SlideError
from mstar.evidence.draw import Opened, patch_sheet, picture
from mstar.evidence.overlay import OverlayKind, write_overlay
from mstar.evidence.scores import FILE, PatchScores, SlideScores, write_scores
from mstar.evidence.tiles import write_tiles
from mstar.schema import Grid
from mstar.slides.geojson import TileType
from mstar.slides.reader import open_slide
from mstar.storage import objects
from mstar.storage.cache import SlideCache, default_cache_dir
from mstar.storage.ids import quoted


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewOptions:
    """What is written beside the scores.

    about: what made the scores, in a line. in_bounds: tiles count from the corner of the scanned
    area, where QuPath begins. k: patches of each end; 0 for none.
    """

    about: str
    object_type: TileType = "tile"
    in_bounds: bool = False
    overlay: OverlayKind | None = "colour"
    k: int = 8
    cache_dir: str | None = None
    cache_gb: float = 200.0


def write_views(
    folder: str,
    scores: SlideScores,
    grid: Grid,
    options: ViewOptions,
    *,
    drawn: Sequence[PatchScores],
) -> list[str]:
    """Write all files of a slide into its folder; says what could not be drawn, and why.

    drawn: the layers that pictures are made of; the first one colours the tiles.
    """
    notes: list[str] = []
    with ExitStack() as resources:
        opened = _open(scores, grid, options, resources, notes)
        write_tiles(
            objects.join(folder, quoted(scores.slide_id) + ".geojson.gz"),
            scores,
            shown=drawn[0],
            object_type=options.object_type,
            offset_l0=_origin(scores, opened, options),
        )
        for layer in drawn:
            name = file_name(layer)
            image = picture(scores, layer, opened, options.about)
            objects.write_whole(objects.join(folder, name + ".png"), image)
            if options.overlay is not None:
                uri = objects.join(folder, name + ".tif")
                write_overlay(uri, scores, layer, options.overlay)
            if opened is not None and options.k:
                _write_sheet(folder, scores, layer, opened, options.k, notes)
    write_scores(objects.join(folder, FILE), scores)
    return notes


def slide_folder(out: str, slide_id: str) -> str:
    """Where a slide's files are."""
    return objects.join(out, quoted(slide_id))


def file_name(layer: PatchScores) -> str:
    """The name of a layer's files, without ending."""
    return quoted("-".join(filter(None, (layer.kind, layer.class_name))))


def _open(
    scores: SlideScores, grid: Grid, options: ViewOptions, resources: ExitStack, notes: list[str]
) -> Opened | None:
    """The slide, where its file is known and can be opened, and is the one of the grid."""
    if not scores.slide_uri:
        notes.append("no slide file is known: pictures are on white (--slide-files)")
        return None
    cache = SlideCache(
        options.cache_dir or default_cache_dir(), max_bytes=int(options.cache_gb * 1e9)
    )
    try:
        slide = open_slide(resources.enter_context(cache.stage(scores.slide_uri)))
        resources.callback(slide.close)
        size, expected = (slide.width_l0, slide.height_l0), (grid.width_l0, grid.height_l0)
        if all(expected) and size != expected:
            raise SlideError(
                f"{scores.slide_uri}: expected {expected[0]} × {expected[1]} px as in the features,"
                f" got {size[0]} × {size[1]}: another slide"
            )
    except (MstarError, OSError) as error:
        notes.append(f"the slide cannot be shown: {error}")
        return None
    return Opened(slide=slide, grid=grid)


def _origin(scores: SlideScores, opened: Opened | None, options: ViewOptions) -> tuple[int, int]:
    """Where the view begins that tiles are written for.

    Raises:
        SlideError: the scanned area is asked for, and the slide cannot be opened to tell.
    """
    if not options.in_bounds:
        return 0, 0
    if opened is None:
        raise SlideError(
            f"slide {scores.slide_id}: --origin bounds needs the slide's file to know where its "
            "scanned area begins. Give --slide-files, or --origin slide."
        )
    x, y, _, _ = opened.slide.metadata.bounds_l0
    return x, y


def _write_sheet(
    folder: str,
    scores: SlideScores,
    layer: PatchScores,
    opened: Opened,
    k: int,
    notes: list[str],
) -> None:
    try:
        sheet = patch_sheet(scores, layer, opened, k)
    except MstarError as error:
        notes.append(f"no pictures of patches: {error}")
        return
    sink = io.BytesIO()
    sheet.save(sink, "PNG")
    objects.write_whole(objects.join(folder, f"{file_name(layer)}-patches.png"), sink.getvalue())
