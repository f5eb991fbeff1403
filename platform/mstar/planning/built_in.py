"""The built-in table of rates: each number with where it is from.

measured: by us, on the machine that the source names. published: by others, likewise. derived: from
numbers of the other kinds, by the arithmetic that stands there. assumed: nobody measured it;
replace it first. Nothing here was measured by us on a GPU.
"""

from dataclasses import dataclass
from typing import Literal

FORWARD_FLOP = 123.107e9
"""Operations of a patch through ViT-L/16 at 224 px (docs/stage2.md)."""
STEP_FLOP = 492.121e9
"""Operations of a patch in a step of stage 2: forward and backward, and the anchor's forward."""
CASE_FLOP = 0.75e12
"""Operations of a case in stage 1, layers recomputed (docs/stage1.md)."""
SHARE_OF_PEAK = 0.35
STAGE1_FLOPS = 100e12
"""What docs/stage1.md reckons with on a card of 989 T/s; a lower bound of the time."""
HOPPER_PEAK = 989e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A number and where it is from."""

    value: float
    kind: Literal["measured", "published", "derived", "assumed"]
    source: str


def measured(value: float, source: str) -> Figure:
    """A number of ours."""
    return Figure(value=value, kind="measured", source=source)


def published(value: float, source: str) -> Figure:
    """A number of others."""
    return Figure(value=value, kind="published", source=source)


def derived(value: float, source: str) -> Figure:
    """A number that follows from others."""
    return Figure(value=value, kind="derived", source=source)


def assumed(value: float, source: str) -> Figure:
    """A number that nobody measured."""
    return Figure(value=value, kind="assumed", source=source)


_S3 = "Amazon's S3 performance guidelines"

BY_MACHINE: dict[str, Figure] = {
    "slide_open_core_s": assumed(
        1.0, "opening took 0.016 s of a core (docs/performance.md), tissue and grid were not timed"
    ),
    "patch_read_core_s": measured(
        1 / 542, "542 patches/s a core, 40x slides of JPEG tiles, 512 px → 224; AMD Zen 3"
    ),
    "worker_start_s": assumed(
        40.0, "13 s were measured with ViT-tiny on a CPU; ViT-L and CUDA take longer"
    ),
    "shard_image_core_s": assumed(
        1 / 400, "reading at 542/s and encoding a JPEG of quality 95; raw tiles cost less"
    ),
    "shard_sort_core_s": measured(1 / 6_300, "docs/shards.md: 6,300 rows per CPU-second, pass 1"),
    "shard_merge_core_s": measured(
        1 / 11_300, "docs/shards.md: 11,300 rows per CPU-second, pass 2"
    ),
    "jpeg_decode_core_s": measured(
        1 / 3_000, "docs/stage2.md: about 3,000 patches/s a core (tests/benchmarks/bench_shards.py)"
    ),
    "trial_overhead_s": assumed(0.1, "reused actors; 3.2 s were measured where each is new"),
    "storage_latency_s": assumed(
        0.03, f"first byte within a region; {_S3} name 100 to 200 ms for whole small requests"
    ),
    "storage_tail": assumed(5.0, "99th percentile over median"),
    "storage_stream_bytes_per_s": published(85e6, f"{_S3}: 85 to 90 MB/s a request"),
}
"""Rates that do not depend on the device."""


def _gpu(
    encoder: Figure, *, peak: float, peak_name: str, targets: float, trials: float
) -> dict[str, Figure]:
    """Rates of a GPU: the encoder as given, training by its peak."""
    share = peak / HOPPER_PEAK
    return {
        "encoder_patches_per_s": encoder,
        "stage1_cases_per_s": derived(
            STAGE1_FLOPS * share / CASE_FLOP,
            f"0.75 T operations a case at {STAGE1_FLOPS * share / 1e12:.0f} T/s, which is assumed: "
            "a lower bound of the time (docs/stage1.md)",
        ),
        "target_patches_per_s": assumed(targets, "two Nyström layers of a window in some 10 ms"),
        "stage2_patches_per_s": derived(
            SHARE_OF_PEAK * peak / STEP_FLOP,
            f"492 G operations a patch at an assumed 35 % of {peak_name} (docs/stage2.md)",
        ),
        "head_trials_per_min": assumed(
            trials, "a step of a bag of 10,000 patches in 2 ms, bound by launches"
        ),
    }


_HOPPER = _gpu(
    assumed(4_000.0, "ViT-L/16 in bfloat16, compiled, at 50 % of 989 T/s; nobody published one"),
    peak=HOPPER_PEAK,
    peak_name="989 T/s",
    targets=200_000.0,
    trials=300.0,
)

BY_DEVICE: dict[str, dict[str, Figure]] = {
    "h200": _HOPPER,
    "h100": _HOPPER,
    "h100-pcie": _gpu(
        assumed(3_050.0, "an H100 SXM's 4,000, by the ratio of their peaks; also H800 PCIe"),
        peak=756e12,
        peak_name="756 T/s",
        targets=150_000.0,
        trials=300.0,
    ),
    "a100": _gpu(
        derived(1_450.0, "AITemplate's ViT-B and ViT-L/384 on an A100 40 GB, scaled by operations"),
        peak=312e12,
        peak_name="312 T/s",
        targets=100_000.0,
        trials=200.0,
    ),
    "rtx4090": _gpu(
        published(1_040.0, "timm's benchmark tables: 1,041.6 images/s, compiled, torch 2.4"),
        peak=165e12,
        peak_name="165 T/s",
        targets=80_000.0,
        trials=200.0,
    ),
    "cpu": {
        "encoder_patches_per_s": derived(
            0.49, "60 G operations a second of a core, measured in MIL heads, and 123.1 G a patch"
        ),
        "stage1_cases_per_s": measured(1 / 29, "docs/stage1.md: 29 s a case, one thread"),
        "target_patches_per_s": measured(
            6_200.0, "docs/targets.md: 6,200 patches per CPU-second through the job"
        ),
        "stage2_patches_per_s": derived(0.12, "the encoder's rate, for 4.0 times the operations"),
        "head_trials_per_min": measured(
            0.96, "16,000 patches/s a core, gated attention of 256, forward and backward; Zen 3"
        ),
    },
}
"""Rates of a device; with `cpu` of one core."""
