"""The tables of platform/docs/stage2.md: all settings, and the run over 116 M patches on paper.

python tests/support/stage2_tables.py      # writes them anew; a test compares
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from mstar.recipes.stage2 import laptop, paper
from support.settings_table import rows

DOC = Path(__file__).parents[2] / "platform" / "docs" / "stage2.md"
TABLES = ("settings", "inputs", "data", "machines")

# measured here
PARAMETERS = 303_350_784  # the encoder of `uni` and `mstar`; tested
FORWARD_FLOP = 123.107e9  # of a patch, two per multiply-add; tested
TRAINING_FLOP = 369.014e9  # forward and backward; tested
DECODED_PER_CORE = 3_000  # patches/s of one thread: tests/benchmarks/bench_shards.py
# published
PEAK_FLOPS = 989e12  # dense bfloat16 of an H100 or H200 SXM (data sheet)
NVLINK_BYTES_PER_S = 360e9  # what all-reduce gets of NVLink 4 within a node
NETWORK_BYTES_PER_S = 50e9  # 400 Gb/s for every GPU, between nodes
REQUEST_USD = 0.0004 / 1000  # a GET of standard object storage
# assumed
PATCHES = 116_000_000
ROW_BYTES = 25_000  # image, target of 512 float16 and names: docs/shards.md
SHARD_BYTES = 512e6
GROUP_ROWS = 256
SHARE_OF_PEAK = 0.35
GPU_HOUR_USD = 3.00

STEP_FLOP = TRAINING_FLOP + FORWARD_FLOP  # the anchor goes forward only
PER_GPU = SHARE_OF_PEAK * PEAK_FLOPS / STEP_FLOP  # patches/s, nothing but computing


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """A column of the table: GPUs, eight a node, and patches of a step."""

    gpus: int
    batch: int

    @property
    def steps(self) -> int:
        return -(-PATCHES // self.batch)

    @property
    def compute_s(self) -> float:
        return self.batch / self.gpus / PER_GPU

    @property
    def sent_bytes(self) -> float:
        """Of one GPU in a step: gradients once around the ring, parameters once, in float32."""
        return 2 * (self.gpus - 1) / self.gpus * 4 * PARAMETERS

    @property
    def send_s(self) -> float:
        return self.sent_bytes / (NVLINK_BYTES_PER_S if self.gpus <= 8 else NETWORK_BYTES_PER_S)

    @property
    def step_s(self) -> float:
        return self.compute_s + self.send_s

    @property
    def hours(self) -> float:
        return self.steps * self.step_s / 3600

    @property
    def patches_per_s(self) -> float:
        return self.batch / self.step_s

    @property
    def zero2_gb(self) -> float:
        """Weights, gradients and anchor whole; master copy and two averages split."""
        return 4 * PARAMETERS * (3 + 3 / self.gpus) / 1e9


COLUMNS = (
    Machines(gpus=8, batch=1024),
    Machines(gpus=32, batch=1024),
    Machines(gpus=32, batch=4096),
    Machines(gpus=128, batch=4096),
    Machines(gpus=128, batch=16384),
)
DDP_GB = 4 * PARAMETERS * 5 / 1e9  # weights, gradients, anchor, two averages: on every rank


def inputs_table() -> str:
    """What the arithmetic starts from."""
    lines = ["| input | value | where it is from |", "|---|---|---|"]
    for name, value, source in (
        ("parameters of the encoder", f"{PARAMETERS:,}", "measured here (tested)"),
        (
            "operations of a patch: forward; forward and backward",
            f"{FORWARD_FLOP / 1e9:.1f} G; {TRAINING_FLOP / 1e9:.1f} G",
            "measured here: counted on the model without data (tested)",
        ),
        (
            "operations of a patch in a step",
            f"{STEP_FLOP / 1e9:.1f} G",
            "derived: student forward and backward, anchor forward",
        ),
        (
            "JPEG decoding of 256 px",
            f"about {DECODED_PER_CORE:,} patches/s a core",
            "measured here: `tests/benchmarks/bench_shards.py`",
        ),
        ("bytes of a row", f"{ROW_BYTES:,}", "assumed; [shards.md](shards.md) measures its parts"),
        ("H100 or H200 SXM, dense bfloat16", f"{PEAK_FLOPS / 1e12:.0f} T/s", "published"),
        (
            "share of that in training",
            f"{SHARE_OF_PEAK:.0%}",
            "assumed. Published of others: 20 to 45 % for ViTs of this size. **Not measured here**",
        ),
        (
            "patches/s of one GPU, computing alone",
            f"{PER_GPU:,.0f}",
            "derived",
        ),
        (
            "rate between GPUs of a node; of different nodes",
            f"{NVLINK_BYTES_PER_S / 1e9:.0f} GB/s; {NETWORK_BYTES_PER_S / 1e9:.0f} GB/s a GPU",
            "published: NVLink 4 in all-reduce; 400 Gb/s a GPU",
        ),
        ("a read request", f"${REQUEST_USD * 1000:.4f} a thousand", "published, S3 Standard"),
        ("a GPU hour", f"${GPU_HOUR_USD:.2f}", "assumed: put in your own"),
    ):
        lines.append(f"| {name} | {value} | {source} |")
    return "\n".join(lines) + "\n"


def data_table() -> str:
    """Bytes and requests of an epoch."""
    total = PATCHES * ROW_BYTES
    groups = -(-PATCHES // GROUP_ROWS)
    lines = ["| of one epoch | | arithmetic |", "|---|---|---|"]
    for name, value, how in (
        ("bytes of shards", f"{total / 1e12:.2f} TB", f"{PATCHES:,} × {ROW_BYTES:,}"),
        (
            "shards",
            f"{total / SHARD_BYTES:,.0f} to {2 * total / SHARD_BYTES:,.0f}",
            "256 to 512 MB each",
        ),
        ("row groups, a request each", f"{groups:,}", f"of {GROUP_ROWS} rows, 6.4 MB"),
        (
            "requests at most",
            f"{2 * groups:,}",
            "where a reader has to fetch a footer for every row group",
        ),
        ("price of these", f"${2 * groups * REQUEST_USD:.2f}", "without traffic between regions"),
        (
            "targets in these bytes",
            f"{PATCHES * 1024 / 1e9:.0f} GB",
            "512 float16 a patch",
        ),
    ):
        lines.append(f"| {name} | {value} | {how} |")
    return "\n".join(lines) + "\n"


def machines_table() -> str:
    """The run on several sizes of cluster."""
    head = "".join(f" {c.gpus} GPUs, batch {c.batch:,} |" for c in COLUMNS)
    lines = [f"| |{head}", "|---|" + "---|" * len(COLUMNS)]

    def line(name: str, *cells: str) -> None:
        lines.append(f"| {name} |" + "".join(f" {cell} |" for cell in cells))

    line("optimiser steps of an epoch", *(f"{c.steps:,}" for c in COLUMNS))
    line("patches of a GPU in a step", *(f"{c.batch // c.gpus}" for c in COLUMNS))
    line("computing, ms a step", *(f"{1e3 * c.compute_s:.0f}" for c in COLUMNS))
    line("a GPU sends, GB a step", *(f"{c.sent_bytes / 1e9:.2f}" for c in COLUMNS))
    line("sending, ms a step, nothing hidden", *(f"{1e3 * c.send_s:.0f}" for c in COLUMNS))
    line("share of computing", *(f"{c.compute_s / c.step_s:.0%}" for c in COLUMNS))
    line("patches/s", *(f"{c.patches_per_s:,.0f}" for c in COLUMNS))
    rates = (c.patches_per_s * ROW_BYTES / 1e9 for c in COLUMNS)
    line("read, GB/s", *(f"{rate:.2f}" for rate in rates))
    line("row groups/s", *(f"{c.patches_per_s / GROUP_ROWS:.0f}" for c in COLUMNS))
    cores = (c.patches_per_s / DECODED_PER_CORE for c in COLUMNS)
    line("cores that decode", *(f"{count:.1f}" for count in cores))
    line("**hours of an epoch**", *(f"**{c.hours:.1f}**" for c in COLUMNS))
    line("GPU hours", *(f"{c.hours * c.gpus:.0f}" for c in COLUMNS))
    line("**cost**", *(f"**${c.hours * c.gpus * GPU_HOUR_USD:,.0f}**" for c in COLUMNS))
    line("weights and state, ZeRO-2, GB a GPU", *(f"{c.zero2_gb:.1f}" for c in COLUMNS))
    line("weights and state, `plain` (DDP), GB a GPU", *(f"{DDP_GB:.1f}" for _ in COLUMNS))
    return "\n".join(lines) + "\n"


def settings_table() -> str:
    """All settings, from the config's own words."""
    lines = ["| flag | `paper` | `laptop` | meaning |", "|---|---|---|---|"]
    for flag, left, right, text in rows(paper(), laptop()):
        lines.append(f"| `{flag}` | {left} | {'' if left == right else right} | {text} |")
    return "\n".join(lines) + "\n"


def with_tables(text: str) -> str:
    """The document with the tables of today."""
    for name in TABLES:
        begin = f"<!-- {name}: python tests/support/stage2_tables.py -->\n"
        end = f"<!-- /{name} -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}{globals()[name + '_table']()}{end}{after}"
    return text


if __name__ == "__main__":
    DOC.write_text(with_tables(DOC.read_text()))
