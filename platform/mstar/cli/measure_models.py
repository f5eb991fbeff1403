"""What models do a second: encoders, a stage-2 step, the aggregator, a head."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mstar.cli.measure_clock import Rate, calls_per_s
from mstar.errors import ConfigError
from mstar.planning.rates import REFERENCE_TRIAL_PATCHES

WINDOW = 4096
BAG_PATCHES = 4000
LONGEST_STEP_S = 2.0  # a training step on a CPU that takes longer is not measured


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
