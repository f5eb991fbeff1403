"""A look at some patches before anything is written: bytes, pass-through, time, and features.

The same patches that the job will store are stored here, from a few slides drawn by their size. The
features of what was stored are compared with the features the targets were made from: the encoder
must not see what storing does to pixels. Below the gate nothing is written.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32

from mstar.data.shards.format import StoredCosine
from mstar.data.shards.pixels import StoredPatch
from mstar.errors import FeatureError, PatchError, SlideError
from mstar.features.files import map_features
from mstar.models.patch_encoders import LoadedEncoder, load_encoder, prepare_weights
from mstar.pretrain.shards_pieces import OpenPiece, PieceOpener, ShardsPlan
from mstar.pretrain.shards_plan import (
    Piece,
    ShardSlide,
    ShardSources,
    ShuffleShape,
    make_cache,
    shape_of,
)
from mstar.slides.raw_tiles import decode

_SLIDES = 8  # staging more would cost more than it tells
_ENCODER_BATCH = 32
_ANY_SHAPE = ShuffleShape(num_buckets=1, unit_rows=1, row_bytes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What was seen.

    patch_s: seconds of one thread to read and store a patch.
    """

    num_patches: int
    num_slides: int
    jpeg_bytes: float  # mean
    passed_through: int
    unreadable: int
    patch_s: float
    cosine: StoredCosine | None

    @property
    def pass_rate(self) -> float:
        """Share of patches that are raw tiles."""
        return self.passed_through / max(1, self.num_patches)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Seen:
    """A stored patch, and the features of its original pixels."""

    patch: StoredPatch
    features: Float32[np.ndarray, " dim"]


def take_sample(sources: ShardSources, *, encode: bool) -> Sample:
    """Store a sample of patches as the job would, without writing any.

    Args:
        sources: what the shards are made of.
        encode: compare features too, where the weights are given.

    Raises:
        FeatureError: no patch of the sample can be read, or the cosine is below the gate.
        WeightsError: the weights are not those that made the features.
    """
    settings = sources.config.shard
    encoder = _encoder(sources) if encode and settings.weights is not None else None
    opener = PieceOpener(
        sources.targets,
        sources.features,
        ShardsPlan(sources=sources, shape=_ANY_SHAPE),
        make_cache(sources.config),
    )
    seen: list[_Seen] = []
    started, unreadable, slides = time.monotonic(), 0, _draw(sources.slides, settings.seed)
    for slide in slides:
        wanted = -(-settings.sample_patches // len(slides))
        found, failed = _look(sources, opener, slide, wanted)
        seen += found
        unreadable += failed
    elapsed_s = time.monotonic() - started
    if not seen:
        raise FeatureError(
            f"{sources.config.cohort}: expected patches to store, but none of {unreadable} in "
            f"{len(slides)} slides can be read. `mstar doctor --slides …` says why."
        )
    sample = Sample(
        num_patches=len(seen),
        num_slides=len(slides),
        jpeg_bytes=float(np.mean([len(one.patch.data) for one in seen])),
        passed_through=sum(one.patch.passed_through for one in seen),
        unreadable=unreadable,
        patch_s=elapsed_s / len(seen),
        cosine=None,
    )
    if encoder is None:
        return sample
    return replace(sample, cosine=_measure(encoder, seen, settings.least_cosine))


def shape_from(sources: ShardSources, sample: Sample) -> ShuffleShape:
    """How the shuffle is cut, by what the sample weighs."""
    return shape_of(
        sources.config.shard, sources.about_rows, sample.jpeg_bytes, sources.targets.dim
    )


def check_cosine(cosine: StoredCosine) -> None:
    """Refuse pixels that the encoder sees otherwise.

    Raises:
        FeatureError: the mean is below the gate.
    """
    if not cosine.mean >= cosine.least_mean:
        raise FeatureError(
            f"stored pixels: expected features with a mean cosine of at least {cosine.least_mean:g}"
            f" to the original ones, got {cosine.mean:.4f} (smallest {cosine.smallest:.4f}, "
            f"{cosine.num_rows} patches). Raise --shard.quality, store --shard.image encoder, or "
            "accept it with --shard.least-cosine; nothing was written."
        )


def _draw(slides: Sequence[ShardSlide], seed: int) -> list[ShardSlide]:
    """Slides drawn by their number of patches, without replacement."""
    weights = np.array([slide.about_rows for slide in slides], np.float64)
    count = min(_SLIDES, int((weights > 0).sum()))
    if not count:
        return list(slides[:1])
    rng = np.random.default_rng((seed, len(slides)))
    chosen = rng.choice(len(slides), count, replace=False, p=weights / weights.sum())
    return [slides[index] for index in sorted(chosen.tolist())]


def _look(
    sources: ShardSources, opener: PieceOpener, slide: ShardSlide, wanted: int
) -> tuple[list[_Seen], int]:
    """Some patches of one slide, evenly over its rows; and how many could not be read."""
    piece = opener.open(Piece(slide_id=slide.slide_id, uri=slide.uri, part=0, parts=1))
    with piece.resources:
        count = min(wanted, len(piece.places))
        places = np.linspace(0, len(piece.places) - 1, count).round().astype(int)
        if piece.images is None:
            return [], count
        rows = piece.targets.rows[places]
        found = list(_read(piece, rows.tolist(), _features(sources, slide.slide_id, rows)))
        return found, count - len(found)


def _read(
    piece: OpenPiece, rows: Sequence[int], features: Float32[np.ndarray, "row dim"]
) -> Iterator[_Seen]:
    assert piece.images is not None
    for row, original in zip(rows, features, strict=True):
        try:
            patch = piece.images.read(row)
        except (PatchError, SlideError):
            continue
        yield _Seen(patch=patch, features=original)


def _features(
    sources: ShardSources, slide_id: str, rows: np.ndarray
) -> Float32[np.ndarray, "row dim"]:
    with make_cache(sources.config).stage(sources.features.slide_uri(slide_id)) as path:
        features: Float32[np.ndarray, "row dim"]
        features = np.asarray(map_features(path)[rows], np.float32)
        return features


def _encoder(sources: ShardSources) -> LoadedEncoder:
    """The encoder that made the features, its weights checked by hash."""
    made = sources.provenance
    weights = prepare_weights(
        made.encoder, sources.config.shard.weights, expected_sha256=made.weights_sha256
    )
    device = sources.config.run.device
    return load_encoder(made.encoder, weights=weights, device=device, batch_size=_ENCODER_BATCH)


def _measure(encoder: LoadedEncoder, seen: Sequence[_Seen], least_mean: float) -> StoredCosine:
    """Cosines between the features of stored pixels and those the targets were made from."""
    pixels = np.stack([encoder.prepare(decode(one.patch.data)) for one in seen])
    padding = -len(pixels) % _ENCODER_BATCH
    padded = np.concatenate([pixels, np.repeat(pixels[:1], padding, axis=0)])
    batches = np.split(padded, len(padded) // _ENCODER_BATCH)
    stored = np.concatenate([encoder.encode(batch) for batch in batches])[: len(seen)]
    cosines = _cosines(stored, np.stack([one.features for one in seen]))
    cosine = StoredCosine(
        num_rows=len(cosines),
        mean=round(float(cosines.mean()), 6),
        smallest=round(float(cosines.min()), 6),
        least_mean=least_mean,
    )
    check_cosine(cosine)
    return cosine


def _cosines(
    left: Float32[np.ndarray, "row dim"], right: Float32[np.ndarray, "row dim"]
) -> np.ndarray:
    a, b = left.astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: np.ndarray = (a * b).sum(axis=1) / np.maximum(norms, 1e-12)
    return cosines
