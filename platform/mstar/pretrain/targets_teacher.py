"""The teacher: the frozen stage-1 aggregator, and what its export says of how it was trained.

A window's patches go in, as many tokens come out, always in one call of a bag of its own: a target
depends on its window and on nothing else, whoever computes it.

Padding. An aggregator in `public` mode was trained on bags of one size, smaller ones filled up with
their mean, which counts; so windows are filled up in the same way, to the size of stage 1's bags.
In `masked` mode padding counts for nothing, and there is none. Rows that fill up have no target.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float16
from numpy import ndarray
from torch import Tensor

from mstar.config import to_dict
from mstar.errors import ConfigError, WeightsError
from mstar.models.aggregator import Aggregator
from mstar.models.exports import AGGREGATOR, read_export
from mstar.models.stage1_files import load_aggregator
from mstar.pretrain.targets_config import TargetsConfig
from mstar.storage import objects

PAPER_BAG = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSpec:
    """An aggregator with everything settled that decides a target; travels to every worker.

    config: of the aggregator, as used. window: patches it sees at once, at most.
    padded_to: rows of every bag, 0 for none but the window's own.
    bag_patches, features, splits: what stage 1 was trained with, as its export says; None where it
    does not.
    """

    uri: str
    sha256: str
    config: Mapping[str, Any]
    window: int
    padded_to: int
    allow_change: bool
    precision: str
    device: str
    threads: int
    bag_patches: int | None = None
    features: str | None = None
    splits: str | None = None

    @property
    def dim(self) -> int:
        """Length of a target."""
        return int(self.config["dim"])

    @property
    def input_dim(self) -> int:
        """Length of a patch's features."""
        return int(self.config["input_dim"])


def settle_teacher(config: TargetsConfig, *, device: str) -> TeacherSpec:
    """Read the aggregator, and decide what the config leaves open.

    Raises:
        WeightsError: it cannot be read, or would be used otherwise than trained.
        ConfigError: the window is not that of stage 1.
    """
    aggregator = load_aggregator(
        config.aggregator,
        mode=config.mode,
        attention=config.attention,
        allow_change=config.allow_change,
    )
    export = read_export(config.aggregator, AGGREGATOR)
    provenance = export.record.get("provenance", {})
    inputs = provenance.get("inputs", {})
    trained_bag = provenance.get("config", {}).get("bag_patches")
    window = _window(config, export.uri, trained_bag)
    return TeacherSpec(
        uri=export.uri,
        sha256=_sha256(export.uri),
        config=to_dict(aggregator.config),
        window=window,
        padded_to=window if aggregator.config.mode == "public" else 0,
        allow_change=config.allow_change,
        precision=config.precision,
        device=device,
        threads=config.threads,
        bag_patches=trained_bag,
        features=inputs.get("features", provenance.get("features_fingerprint")),
        splits=inputs.get("splits", provenance.get("split_digest")),
    )


def _window(config: TargetsConfig, uri: str, trained_bag: int | None) -> int:
    """Patches of a window: those of stage 1's bags, unless another number is meant."""
    trained = trained_bag or PAPER_BAG
    if config.window is None or config.window == trained or config.allow_change:
        return config.window or trained
    if trained_bag is None:
        return config.window
    raise ConfigError(
        f"--window {config.window}: expected {trained}, the bag size that {uri} was trained with. "
        "Leave --window out, or add --allow-change."
    )


class Teacher:
    """The aggregator in evaluation mode on its device; for one thread."""

    def __init__(self, spec: TeacherSpec) -> None:
        """Load the aggregator of a spec.

        Raises:
            WeightsError: the file is another one than when the spec was settled.
        """
        self.spec = spec
        self._device = torch.device(spec.device)
        self._aggregator = _load(spec).to(self._device).requires_grad_(False)
        self._pinned: Tensor | None = None

    def __call__(self, features: Float[ndarray, "patch feature"]) -> Float16[ndarray, "patch dim"]:
        """The tokens of one window's patches after the last LayerNorm.

        Values that float16 cannot hold come out as infinity; writing them is refused.
        """
        num = len(features)
        assert 0 < num <= self.spec.window, num
        size = self.spec.padded_to or num
        with torch.inference_mode(), _threads(self.spec), _exact_kernels(), self._autocast():
            bag = torch.zeros(1, size, features.shape[1], device=self._device)
            bag[0, :num] = self._moved(features)
            mask = torch.arange(size, device=self._device)[None] < num
            tokens: Tensor = self._aggregator(bag, None if num == size else mask).patches
            return tokens[0, :num].to(torch.float16).cpu().numpy()

    def _moved(self, features: Float[ndarray, "patch feature"]) -> Float[Tensor, "patch feature"]:
        """The features on the device, through page-locked memory where there is a GPU."""
        rows = torch.from_numpy(features)
        if self._device.type != "cuda":
            return rows
        if self._pinned is None or self._pinned.dtype != rows.dtype:
            shape = (self.spec.window, rows.shape[1])
            self._pinned = torch.empty(shape, dtype=rows.dtype, pin_memory=True)
        # free again: the call before this one has waited for its tokens
        staged = self._pinned[: len(rows)].copy_(rows)
        return staged.to(self._device, non_blocking=True)

    def _autocast(self) -> Any:
        on = self.spec.precision == "bfloat16"
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=on)


def _load(spec: TeacherSpec) -> Aggregator:
    aggregator = load_aggregator(
        spec.uri,
        mode=spec.config["mode"],
        attention=spec.config["attention"],
        allow_change=spec.allow_change,
    )
    found = _sha256(spec.uri)  # after loading: what was loaded is what was hashed, or older
    if found != spec.sha256:
        raise WeightsError(
            f"{spec.uri}: was replaced since this run began (sha256 {found[:12]}, was "
            f"{spec.sha256[:12]}). Let stage 1 end first, then run `mstar targets` again."
        )
    return aggregator


def _sha256(uri: str) -> str:
    return hashlib.sha256(objects.read_bytes(uri)).hexdigest()


@contextmanager
def _threads(spec: TeacherSpec) -> Iterator[None]:
    """The spec's number of CPU threads: another number would round sums otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(spec.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _exact_kernels() -> Iterator[None]:
    """Kernels that give equal bits every time, and whole float32 products in convolutions."""
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    ):
        yield
