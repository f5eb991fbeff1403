"""From work items to open slides: what travels to a worker, and what it reads from."""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Int64

from mstar.data.shards.buckets import unit_name
from mstar.data.shards.pixels import ImageConfig, PatchImages, StoredPatch
from mstar.data.shards.writer import ShardLayout
from mstar.data.target_files import SlideTargets
from mstar.data.targets import TargetStore
from mstar.errors import FeatureError, PatchError, SlideError
from mstar.features.files import coords_digest, read_grid
from mstar.features.store import FeatureStore
from mstar.models.transforms import resize_patch
from mstar.pretrain.shards_plan import MB, Piece, ShardSources, ShuffleShape
from mstar.schema import Grid
from mstar.slides.reader import open_slide
from mstar.storage import objects
from mstar.storage.cache import SlideCache

DONE = "done"  # below the state: a record per finished bucket


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardsPlan:
    """Everything a worker needs, settled; travels to every worker."""

    sources: ShardSources
    shape: ShuffleShape

    @property
    def image(self) -> ImageConfig:
        """How patches are stored."""
        settings = self.sources.config.shard
        return ImageConfig(
            side_px=self.sources.side_px,
            quality=settings.quality,
            pass_through=settings.pass_through,
        )

    @property
    def layout(self) -> ShardLayout:
        """How rows are laid out in shards."""
        settings = self.sources.config.shard
        return ShardLayout(
            target_dim=self.sources.targets.dim,
            rows_per_group=settings.rows_per_group,
            shard_bytes=settings.shard_mb * MB,
        )

    def unit_uri(self, number: int) -> str:
        """Where the rows of a unit go."""
        return objects.join(self.sources.buckets, unit_name(number))

    def done_uri(self, bucket: int) -> str:
        """Where the record of a finished bucket goes."""
        return objects.join(self.sources.state, DONE, f"bucket-{bucket:06d}.json")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OpenPiece:
    """The rows of a piece, ready to be read; or why its slide cannot be.

    rows: of the slide's grid, those that have a target and are in the piece.
    places: their places among the slide's targets.
    """

    targets: SlideTargets
    places: Int64[np.ndarray, " row"]
    images: PatchImages | None
    problem: str
    resources: ExitStack

    @property
    def coords(self) -> Int64[np.ndarray, "row 2"]:
        """Level-0 top-left of each row."""
        coords: Int64[np.ndarray, "row 2"] = self.targets.coords[self.places]
        return coords


class PieceOpener:
    """Opens slides with their grids and targets."""

    def __init__(
        self, targets: TargetStore, features: FeatureStore, plan: ShardsPlan, cache: SlideCache
    ) -> None:
        """Stage remote files in `cache`."""
        self._targets, self._features, self._cache = targets, features, cache
        self._image = plan.image
        self._resize = partial(resize_patch, interpolation=plan.sources.spec.interpolation)

    def open(self, piece: Piece) -> OpenPiece:
        """Stage and open a piece's slide.

        Raises:
            FeatureError: targets and grid do not belong together.
        """
        targets = self._targets.read(piece.slide_id)
        grid = self._grid(targets)
        cuts = [len(targets) * part // piece.parts for part in (piece.part, piece.part + 1)]
        places = np.arange(*cuts)
        with ExitStack() as stack:
            images, problem = None, ""
            if len(places):
                try:
                    images = self._images(piece.uri, grid, stack)
                except SlideError as error:
                    problem = str(error)
            return OpenPiece(
                targets=targets,
                places=places,
                images=images,
                problem=problem,
                resources=stack.pop_all(),
            )

    def _images(self, uri: str, grid: Grid, stack: ExitStack) -> PatchImages:
        slide = open_slide(stack.enter_context(self._cache.stage(uri)))
        stack.callback(slide.close)
        images = PatchImages(slide, grid, self._image, self._resize)
        stack.callback(images.close)
        return images

    def _grid(self, targets: SlideTargets) -> Grid:
        uri = self._features.slide_uri(targets.slide_id)
        with self._cache.stage(uri) as path:
            grid = read_grid(path, name=uri)
        if coords_digest(grid.coords) != targets.grid_sha256:
            raise FeatureError(
                f"{uri}: coords: expected those that the targets were made for "
                f"({targets.grid_sha256[:12]}…), got others. Make the targets again."
            )
        return grid


def read_stored(piece: OpenPiece, place: int) -> StoredPatch | str:
    """The stored form of one patch, or why there is none."""
    if piece.images is None:
        return piece.problem
    try:
        return piece.images.read(int(piece.targets.rows[place]))
    except PatchError as error:
        return str(error)
