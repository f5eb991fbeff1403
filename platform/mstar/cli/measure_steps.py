"""The loops of `mstar measure`: each gives some rates of one machine."""

import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8

from mstar.errors import ConfigError
from mstar.planning.rates import REFERENCE_TRIAL_PATCHES
from mstar.schema import Grid, SlideRef
from mstar.slides.reader import Slide, open_slide
from mstar.storage import objects
from mstar.storage.manifest import BadRow, read_slides

Item = TypeVar("Item")

SLIDES = 3  # of the caller's that are looked at
SIDE_PX = 4096
PATCH_PX_L0 = 512
WINDOW = 4096
BAG_PATCHES = 4000
PROBE_BYTES = 32 << 20
BLOCK_BYTES = 8 << 20  # of a request of the slide cache
SMALL_BYTES = 4096
SMALL_READS = 40
LONGEST_STEP_S = 2.0  # a training step on a CPU that takes longer is not measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A rate, and how it was measured."""

    name: str
    value: float
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderUnderTest:
    """What is measured of an encoder."""

    name: str
    device: str
    batch_size: int
    compiled: bool = False


def is_cuda(device: str) -> bool:
    """Whether a GPU is meant; it must be there."""
    import torch

    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise ConfigError("--device cuda: expected a GPU, got none. Use --device auto or cpu.")
    return there and device != "cpu"


def gpu_name() -> str:
    """Of the first GPU."""
    import torch

    return str(torch.cuda.get_device_name(0))


def cpu_name() -> str:
    """The processor's, as the system calls it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names and names[0] else "unknown processor"


# ------------------------------------------------------------------------------------ reading


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


def core_seconds(do: Callable[[Item], object], items: list[Item], seconds: float) -> float:
    """CPU seconds of this process per item, over some seconds of wall time."""
    do(items[0])
    count, began_s, cpu_s = 0, time.perf_counter(), time.process_time()
    for item in cycle(items):
        do(item)
        count += 1
        if time.perf_counter() - began_s >= seconds:
            break
    return (time.process_time() - cpu_s) / count


# ------------------------------------------------------------------------------------- models


def encoding(encoder: EncoderUnderTest, seconds: float) -> Rate:
    """Patches a second, whole batches from memory, as the embedding job encodes them."""
    from mstar.models.patch_encoders import load_encoder

    threads = 1 if encoder.device == "cpu" else None
    with torch_threads(threads):
        loaded = load_encoder(
            encoder.name,
            weights="random:0",
            device=encoder.device,
            compile=encoder.compiled,
            batch_size=encoder.batch_size,
            threads=threads,
        )
        side = loaded.spec.input_px
        rng = np.random.default_rng(0)
        batch = rng.integers(0, 255, (encoder.batch_size, side, side, 3), np.uint8)
        rate = encoder.batch_size * calls_per_s(
            lambda: loaded.encode(batch), seconds, of_core=encoder.device == "cpu"
        )
    how = f"{encoder.name}, batches of {encoder.batch_size}, {loaded.runtime()['precision']}"
    return Rate(name="encoder_patches_per_s", value=rate, note=how)


def training(encoder: EncoderUnderTest, encodes_per_s: float, seconds: float) -> Iterator[Rate]:
    """Patches a second of stage 2; left out on a CPU where a step would take seconds."""
    import torch

    from mstar.models.encoder_table import find_encoder
    from mstar.models.loaded_encoder import forward_of
    from mstar.models.patch_encoders import load_model, prepare_weights

    batch = 32 if encoder.device == "cuda" else 1
    if encoder.device == "cpu" and 4 * batch / encodes_per_s > LONGEST_STEP_S:
        return
    spec = find_encoder(encoder.name)
    if all(parameter.numel() == 0 for parameter in spec.build().parameters()):
        return  # nothing can be learnt
    model = load_model(spec, prepare_weights(spec.name, "random:0"))
    model.requires_grad_(True).to(encoder.device)
    forward = forward_of(spec, model)
    images = torch.rand(batch, 3, spec.input_px, spec.input_px, device=encoder.device)

    def step() -> None:
        with torch.autocast(encoder.device, torch.bfloat16, enabled=encoder.device == "cuda"):
            with torch.no_grad():
                anchor = forward(images)
            loss = (forward(images).float() - anchor.float() - 1).square().mean()
        model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        _synchronise(encoder.device)

    with torch_threads(1 if encoder.device == "cpu" else None):
        rate = batch * calls_per_s(step, seconds, of_core=encoder.device == "cpu")
    note = f"{encoder.name}: forward, backward, the anchor's forward, {batch} patches; no optimiser"
    yield Rate(name="stage2_patches_per_s", value=rate, note=note)


def aggregating(device: str, seconds: float) -> Rate:
    """Patches a second through the aggregator at the paper's sizes."""
    import torch

    from mstar.models.aggregator import Aggregator, AggregatorConfig

    model = Aggregator(AggregatorConfig()).eval().requires_grad_(False).to(device)
    bag = torch.randn(1, WINDOW, 1024, device=device)

    def window() -> None:
        with torch.inference_mode():
            model(bag)
        _synchronise(device)

    with torch_threads(1 if device == "cpu" else None):
        rate = WINDOW * calls_per_s(window, seconds, of_core=device == "cpu")
    return Rate(name="target_patches_per_s", value=rate, note=f"windows of {WINDOW}, float32")


def heads(device: str, seconds: float) -> Rate:
    """Reference trials a minute of a gated attention head."""
    import torch

    from mstar.models.heads import build_head

    head = build_head("abmil_gated", {}, input_dim=1024, num_outputs=2).to(device)
    bag = torch.randn(BAG_PATCHES, 1024, device=device)
    offsets = torch.tensor([0, BAG_PATCHES], device=device)
    optimiser = torch.optim.Adam(head.parameters(), lr=1e-4)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        head(bag, offsets).logits.square().sum().backward()
        optimiser.step()
        _synchronise(device)

    with torch_threads(1 if device == "cpu" else None):
        patches_per_s = BAG_PATCHES * calls_per_s(step, seconds, of_core=device == "cpu")
    return Rate(
        name="head_trials_per_min",
        value=60 * patches_per_s / REFERENCE_TRIAL_PATCHES,
        note=f"abmil_gated, a bag of {BAG_PATCHES} a step: {patches_per_s:,.0f} patches/s",
    )


def calls_per_s(call: Callable[[], object], seconds: float, *, of_core: bool = False) -> float:
    """Calls a second, after one that warms up and over some seconds; at least one.

    of_core: per CPU-second of this process, which other programs on the machine do not change.
    """
    clock = time.process_time if of_core else time.perf_counter
    call()
    count, until_s, began_s = 0, time.perf_counter() + seconds, clock()
    while time.perf_counter() < until_s or not count:
        call()
        count += 1
    return count / max(clock() - began_s, 1e-9)


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """So many threads of torch for a while; None leaves them."""
    import torch

    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def _synchronise(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


# ------------------------------------------------------------------------------------ storage


def storage(root: str, seconds: float) -> Iterator[Rate]:
    """Latency of small reads, and bytes a second of one stream of large ones."""
    uri = objects.join(root, f"mstar-measure-{secrets.token_hex(4)}.bin")
    objects.write_whole(uri, secrets.token_bytes(PROBE_BYTES))
    try:
        info = objects.stat(uri)
        assert info is not None
        read = partial(objects.read_range, uri, tag=info.tag)
        waits_s = np.array([_timed(lambda: read(0, SMALL_BYTES)) for _ in range(SMALL_READS)])
        median_s = float(np.median(waits_s))
        yield Rate(
            name="storage_latency_s",
            value=median_s,
            note=f"median of {SMALL_READS} reads of {SMALL_BYTES} bytes, one after the other",
        )
        tail = max(1.0, float(np.quantile(waits_s, 0.99)) / median_s)
        yield Rate(name="storage_tail", value=tail, note=f"of {SMALL_READS} reads: a rough figure")
        blocks = PROBE_BYTES // BLOCK_BYTES
        starts = cycle(range(0, blocks * BLOCK_BYTES, BLOCK_BYTES))
        per_s = calls_per_s(lambda: _read_block(read, next(starts)), seconds)
        carrying_s = max(1 / per_s - median_s, 1e-6)  # the latency is a rate of its own
        note = f"one stream of reads of {BLOCK_BYTES >> 20} MiB, the latency taken off"
        yield Rate(name="storage_stream_bytes_per_s", value=BLOCK_BYTES / carrying_s, note=note)
    finally:
        objects.delete(uri)


def _read_block(read: Callable[..., bytes], start: int) -> None:
    read(start, start + BLOCK_BYTES)


def _timed(call: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    call()
    return time.perf_counter() - began_s
