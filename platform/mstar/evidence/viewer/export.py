"""The page as a folder: opens from a disk, without a server and without a network.

    index.html, data.js, *.js, viewer.css, the licence of OpenSeadragon
    slide.dzi, slide_files/<level>/<column>_<row>.jpg     as every viewer of DeepZoom reads them
    view.json                          what the tiles are of; written first, completed last

Run again, only the tiles that are missing are made. One that cannot be decoded is grey, and written
after all others: an ended run has not given up on any.
"""

import json
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mstar import __version__
from mstar.config import differences
from mstar.errors import StoreMismatchError
from mstar.evidence.viewer.content import ViewContent
from mstar.evidence.viewer.deepzoom import DeepZoom
from mstar.evidence.viewer.page import TILES, page_files
from mstar.evidence.viewer.tiles import TileMaker
from mstar.schema import RESEARCH_ONLY
from mstar.storage import objects

RECORD, DZI = "view.json", "slide.dzi"
_AHEAD = 4  # tiles in the making per thread


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What became of an export. unreadable: tile → why it is grey."""

    num_tiles: int
    num_new: int
    unreadable: dict[str, str]


def export(out: str, content: ViewContent, tiles: TileMaker, *, threads: int) -> Exported:
    """Write the folder, whatever is missing of it.

    Raises:
        StoreMismatchError: it holds tiles of something else.
    """
    identity = identity_of(tiles)
    before = _before(out, identity)
    objects.write_whole(objects.join(out, RECORD), _json({"tiles": identity, "complete": False}))
    there = {file.rel for file in objects.list_files(objects.join(out, TILES), suffix=".jpg")}
    missing = [one for one in content.zoom.addresses() if tile_name(*one) not in there]
    _write_tiles(out, tiles, missing, threads)
    unreadable = before | {tile_name(*one): why for one, why in sorted(tiles.unreadable.items())}
    objects.write_whole(objects.join(out, DZI), dzi(content.zoom).encode())
    for name, data in page_files(content).items():
        objects.write_whole(objects.join(out, name), data)
    record = {
        "tiles": identity,
        "complete": True,
        "slide_id": content.slide_id,
        "unreadable": unreadable,
        "scores": [f"{one.scores.name} of {one.source}" for one in content.layers],
        "patches": len(content.coords_l0),
        "mstar_version": __version__,
        "warning": RESEARCH_ONLY,
    }
    objects.write_whole(objects.join(out, RECORD), _json(record))
    return Exported(num_tiles=len(content.zoom), num_new=len(missing), unreadable=unreadable)


def identity_of(tiles: TileMaker) -> dict[str, Any]:
    """What decides the tiles' bytes."""
    zoom, path = tiles.zoom, Path(tiles.slide.uri)
    return {
        "slide": path.name,
        "size_bytes": path.stat().st_size,
        "width_l0": zoom.width_l0,
        "height_l0": zoom.height_l0,
        "downsample": zoom.downsample,
        "tile_px": zoom.tile_px,
        "overlap_px": zoom.overlap_px,
        "quality": tiles.quality,
    }


def tile_name(level: int, column: int, row: int) -> str:
    """Of a tile, in the folder of tiles."""
    return f"{level}/{column}_{row}.jpg"


def dzi(zoom: DeepZoom) -> str:
    """The geometry as DeepZoom's own XML."""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="jpg" '
        f'Overlap="{zoom.overlap_px}" TileSize="{zoom.tile_px}">'
        f'<Size Width="{zoom.width}" Height="{zoom.height}"/></Image>\n'
    )


def _before(out: str, identity: dict[str, Any]) -> dict[str, str]:
    """Tiles that an earlier run could not read."""
    uri = objects.join(out, RECORD)
    if not objects.exists(uri):
        return {}
    record = json.loads(objects.read_bytes(uri))
    lines = differences(record["tiles"], identity)
    if lines:
        raise StoreMismatchError(
            f"{out}: holds the tiles of something else: {'; '.join(lines)}. Choose another folder."
        )
    return dict(record.get("unreadable", {}))


def _write_tiles(
    out: str, tiles: TileMaker, missing: list[tuple[int, int, int]], threads: int
) -> None:
    """Makes and writes tiles, a few ahead, so that a million addresses are not a million jobs."""
    running: set[Future[None]] = set()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for address in missing:
                running.add(pool.submit(_write_tile, out, tiles, address))
                if len(running) >= threads * _AHEAD:
                    running = _checked(running)
            while running:
                running = _checked(running)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for address in sorted(tiles.unreadable):
        _put_tile(out, tiles, address)


def _checked(running: set[Future[None]]) -> set[Future[None]]:
    """Waits for one to be done, raises what went wrong; those that still run."""
    done, left = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
    return left


def _write_tile(out: str, tiles: TileMaker, address: tuple[int, int, int]) -> None:
    """Writes a tile unless it is unreadable."""
    made = tiles.tile(*address)
    assert made is not None
    if address not in tiles.unreadable:
        objects.write_whole(objects.join(out, TILES, tile_name(*address)), made)


def _put_tile(out: str, tiles: TileMaker, address: tuple[int, int, int]) -> None:
    """Writes a tile as it is, grey where it could not be read."""
    made = tiles.tile(*address)
    assert made is not None
    objects.write_whole(objects.join(out, TILES, tile_name(*address)), made)


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
