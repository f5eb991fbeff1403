"""What goes into the shards, cut into work items: slides for pass 1, buckets for pass 2."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from mstar import config as configs
from mstar.data.shards.format import FOLDER, STATE, ShardEncoder
from mstar.data.shards.hashing import MAX_BUCKETS
from mstar.data.targets import FOLDER as TARGETS
from mstar.data.targets import RESERVED, SUFFIX, TargetStore
from mstar.errors import CohortError, FeatureError
from mstar.features.files import FeatureProvenance, read_provenance
from mstar.features.store import FeatureStore
from mstar.models.encoder_spec import RESIZE_KERNELS, EncoderSpec
from mstar.models.encoder_table import find_encoder
from mstar.pretrain.shards_config import ShardsConfig, ShardSettings
from mstar.storage import objects
from mstar.storage.cache import SlideCache, default_cache_dir
from mstar.storage.manifest import BadRow, read_slides

MB = 1_000_000
_BYTES_BESIDE = 24  # of a row of a target file, beside its target: row and coordinates
_FILE_BYTES = 10_000  # of a target file without rows, about
_SMALL_BYTES = 1_000_000  # of a target file whose rows are counted, since that costs little
_TEXT_BYTES = 64  # of a row of a shard, beside image and target
_SLACK = 1.15  # of the sample's estimate
_UNITS = 64  # fewer would leave workers idle at the end
_LEAST_UNIT_ROWS = 1024

_PIECE = pa.struct(
    [
        ("slide_id", pa.string()),
        ("uri", pa.string()),
        ("part", pa.int32()),
        ("parts", pa.int32()),
    ]
)
_UNIT_SCHEMA = pa.schema([("number", pa.int64()), ("pieces", pa.list_(_PIECE))])


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSlide:
    """A slide with targets; how many is told from the size of their file, nearly."""

    slide_id: str
    uri: str
    target_bytes: int
    about_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The `part`-th of `parts` equal parts of a slide's rows."""

    slide_id: str
    uri: str
    part: int
    parts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """The pieces that become one file of rows."""

    number: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSources:
    """What the shards are made of.

    slides: in order of their ids. identity: whatever decides a byte of the shards.
    """

    config: ShardsConfig
    targets: TargetStore
    features: FeatureStore
    provenance: FeatureProvenance
    spec: EncoderSpec
    side_px: int
    slides: tuple[ShardSlide, ...]
    identity: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Of the identity."""
        return configs.fingerprint(self.identity)

    @property
    def about_rows(self) -> int:
        """Rows of all slides, nearly."""
        return sum(slide.about_rows for slide in self.slides)

    @property
    def folder(self) -> str:
        """Where the shards go."""
        return objects.join(self.config.out, FOLDER)

    @property
    def state(self) -> str:
        """Where work in progress is recorded."""
        return objects.join(self.folder, STATE)

    @property
    def bucket_root(self) -> str:
        """Where folders of buckets are."""
        return self.config.shard.scratch or self.state

    @property
    def bucket_prefix(self) -> str:
        """What the names of this output's folders of buckets begin with."""
        return f"buckets-{hashlib.sha256(self.folder.encode()).hexdigest()[:8]}-"

    @property
    def buckets(self) -> str:
        """Where the buckets of these shards go."""
        return objects.join(self.bucket_root, self.bucket_prefix + self.fingerprint)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShuffleShape:
    """How the shuffle is cut, settled once by the sample and kept with the work in progress."""

    num_buckets: int
    unit_rows: int
    row_bytes: int


def find_sources(config: ShardsConfig) -> ShardSources:
    """Everything that the shards are made of, looked up and checked against one another.

    Raises:
        FeatureError: targets and features do not belong together, or there are none.
        CohortError: a slide with targets is not in the cohort.
    """
    targets, features = TargetStore.open(config.out), FeatureStore.open(config.features)
    stated = targets.record.config["features"]["fingerprint"]
    if stated != features.fingerprint:
        raise FeatureError(
            f"{config.features}: expected the features the targets were made from ({stated}), got "
            f"{features.fingerprint}. Give the store that `mstar targets` read."
        )
    slides = _slides(config, targets)
    provenance = _provenance(config, features, slides[0].slide_id)
    spec = find_encoder(provenance.encoder)
    side_px = spec.input_px if config.shard.image == "encoder" else _patch_px(features)
    return ShardSources(
        config=config,
        targets=targets,
        features=features,
        provenance=provenance,
        spec=spec,
        side_px=side_px,
        slides=slides,
        identity=_identity(config.shard, targets, features, slides, spec, side_px),
    )


def encoder_record(spec: EncoderSpec, provenance: FeatureProvenance) -> ShardEncoder:
    """What the index says of the encoder."""
    return ShardEncoder(
        name=spec.name,
        weights_sha256=provenance.weights_sha256,
        dim=spec.dim,
        input_px=spec.input_px,
        mean=spec.mean,
        std=spec.std,
        interpolation=spec.interpolation,
        transform=spec.transform,
    )


def shape_of(settings: ShardSettings, about_rows: int, jpeg_bytes: float, dim: int) -> ShuffleShape:
    """How to cut the shuffle, given what a stored image takes on average.

    A bucket takes half of a worker's memory (the shard that is put together takes most of the
    rest), a unit of pass 1 a fifth (it is held as rows, and as the file that is put together).
    """
    row_bytes = int(jpeg_bytes) + 2 * dim + _TEXT_BYTES
    memory = settings.memory_mb * MB
    buckets = -(-int(_SLACK * about_rows * row_bytes) // (memory // 2))
    most_rows = max(1, memory // 5 // row_bytes)
    return ShuffleShape(
        num_buckets=min(max(1, buckets), MAX_BUCKETS),
        unit_rows=min(most_rows, max(_LEAST_UNIT_ROWS, about_rows // _UNITS)),
        row_bytes=row_bytes,
    )


def cut_units(slides: Sequence[ShardSlide], unit_rows: int) -> Iterator[Unit]:
    """Consecutive slides worth `unit_rows`; a larger slide is cut into equal parts."""
    pieces: list[Piece] = []
    rows = number = 0
    for slide in slides:
        parts = max(1, -(-slide.about_rows // unit_rows))
        for part in range(parts):
            piece = Piece(slide_id=slide.slide_id, uri=slide.uri, part=part, parts=parts)
            pieces.append(piece)
            rows += slide.about_rows // parts
            if rows >= unit_rows or parts > 1:
                yield Unit(number=number, pieces=tuple(pieces))
                pieces, rows, number = [], 0, number + 1
    if pieces:
        yield Unit(number=number, pieces=tuple(pieces))


def units_table(units: Sequence[Unit]) -> pa.Table:
    """Units as rows that Ray Data moves."""
    return pa.Table.from_pylist([asdict(unit) for unit in units], _UNIT_SCHEMA)


def unit_of(row: dict[str, Any]) -> Unit:
    """The unit of one row."""
    return Unit(number=row["number"], pieces=tuple(Piece(**piece) for piece in row["pieces"]))


def make_cache(config: ShardsConfig) -> SlideCache:
    """This node's cache of slides and features."""
    folder = config.run.cache_dir or default_cache_dir()
    return SlideCache(folder, max_bytes=int(config.run.cache_gb * 1e9))


def _slides(config: ShardsConfig, targets: TargetStore) -> tuple[ShardSlide, ...]:
    """The slides with targets, by id, each with the place of its pixels."""
    manifest = objects.join(config.cohort, "slides.csv")
    places: dict[str, str] = {}
    for row in read_slides(manifest):
        if not isinstance(row, BadRow):
            places[row.slide_id] = row.uri
    found = []
    for info in objects.list_files(objects.join(config.out, TARGETS), suffix=SUFFIX):
        if info.rel.split("/")[0] in RESERVED:
            continue
        slide_id = info.rel.removesuffix(SUFFIX)
        if slide_id not in places:
            raise CohortError(
                f"slide {slide_id}: expected in {manifest}, since it has targets; got no such row. "
                "Give the cohort that the targets were made from."
            )
        slide = ShardSlide(
            slide_id=slide_id,
            uri=places[slide_id],
            target_bytes=info.size_bytes,
            about_rows=_about_rows(targets, slide_id, info.size_bytes),
        )
        found.append(slide)
    if not found:
        raise FeatureError(f"{targets.root}: expected targets, got none. Run `mstar targets`.")
    return tuple(sorted(found, key=lambda slide: slide.slide_id))


def _about_rows(targets: TargetStore, slide_id: str, size_bytes: int) -> int:
    """Rows of a target file; of a large one by its size, which is right to a percent."""
    if size_bytes < _SMALL_BYTES:
        return len(targets.read(slide_id))
    return (size_bytes - _FILE_BYTES) // (2 * targets.dim + _BYTES_BESIDE)


def _provenance(config: ShardsConfig, features: FeatureStore, slide_id: str) -> FeatureProvenance:
    with make_cache(config).stage(features.slide_uri(slide_id)) as path:
        return read_provenance(path, name=features.slide_uri(slide_id))


def _patch_px(features: FeatureStore) -> int:
    """The side of the store's patches; imported stores do not state it."""
    grid = features.record.config.get("slides", {}).get("grid", {})
    return int(grid.get("patch_px", 256))


def _identity(
    settings: ShardSettings,
    targets: TargetStore,
    features: FeatureStore,
    slides: Sequence[ShardSlide],
    spec: EncoderSpec,
    side_px: int,
) -> dict[str, Any]:
    listing = "\n".join(f"{slide.slide_id}\t{slide.target_bytes}" for slide in slides)
    return {
        "targets": targets.fingerprint,
        "data_source": targets.record.config.get("data_source", "real"),
        "target_dim": targets.dim,
        "features": features.fingerprint,
        "encoder": spec.name,
        "num_slides": len(slides),
        "slides_sha256": hashlib.sha256(listing.encode()).hexdigest(),
        "patch_px": side_px,
        "resize_kernel": RESIZE_KERNELS[spec.interpolation],
        "quality": settings.quality,
        "pass_through": settings.pass_through,
        "seed": settings.seed,
        "rows_per_group": settings.rows_per_group,
        "shard_mb": settings.shard_mb,
        "memory_mb": settings.memory_mb,
    }
