"""State dicts: read from a file without running code in it, match a model strictly, or drawn.

Strict means: every tensor of the model is in the file and every tensor of the file in the model,
with equal shapes. Three things are forgiven, and said: a known wrapper or prefix around all keys,
when taking it off gives an exact match; the parts a spec leaves out on purpose (`ignored_keys`, the
classifier); and the counters `num_batches_tracked` that old files lack and evaluation does not use.
"""

import hashlib
import math
import pickle
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mstar.errors import WeightsError

StateDict = dict[str, Tensor]

WRAPPERS = ("state_dict", "model_state_dict", "model", "teacher")
PREFIXES = ("module.", "model.", "backbone.", "module.model.", "module.backbone.")
_SHOWN = 3  # keys named in an error, of each kind

_DRAWING = threading.Lock()  # torch's seeded generator is one for all threads


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedState:
    """A state dict that fits a model exactly; `note` says what was taken off to get there."""

    state: StateDict
    note: str


def read_state(path: Path) -> Mapping[str, Any]:
    """The content of a weights file, memory-mapped where the format allows.

    Raises:
        WeightsError: the file is not a readable `.safetensors` or PyTorch file of tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        mmap = zipfile.is_zipfile(path)  # the format before PyTorch 1.6 cannot be mapped
        raw = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: holds more than tensors (or is no PyTorch file), so it is not opened: "
            "loading it could run code. Where you trust it, convert it to .safetensors. "
            f"{_first_line(error)}"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{path}: cannot be read as {path.suffix or 'weights'}: truncated or another format? "
            f"{_first_line(error)}"
        ) from error
    if not isinstance(raw, Mapping):
        raise WeightsError(f"{path}: expected a dict of tensors, found {type(raw).__name__}")
    return raw


def match_state(
    model: nn.Module, raw: Mapping[str, Any], *, ignored_keys: tuple[str, ...], source: str
) -> MatchedState:
    """The tensors of `raw` under the model's own names.

    Raises:
        WeightsError: no reading of the file fits; names the first missing, unexpected and
            misshapen tensors of the closest one.
    """
    wanted = model.state_dict()
    closest: tuple[int, str] | None = None
    for note, candidate in _readings(raw):
        state = {k: v for k, v in candidate.items() if k in wanted or not _is(k, ignored_keys)}
        for key, value in wanted.items():
            if key.endswith("num_batches_tracked") and key not in state:
                state[key] = torch.zeros_like(value, device="cpu")
        wrong, complaint = _compare(wanted, state)
        if not wrong:
            dropped = len(candidate.keys() - state.keys())
            left_out = f"left out {dropped} tensors of {', '.join(ignored_keys)}" if dropped else ""
            return MatchedState(state=state, note="; ".join(filter(None, (note, left_out))))
        if closest is None or wrong < closest[0]:
            closest = wrong, complaint
    if closest is None:
        raise WeightsError(f"{source}: holds no dict of tensors; its keys are {_some(list(raw))}")
    raise WeightsError(f"{source}: does not fit {type(model).__name__} exactly. {closest[1]}")


def draw_model(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A model with random weights that depend on the seed only, not on machine or threads.

    Matrices and convolutions are drawn uniformly with variance 1 / fan-in from NumPy's Philox,
    whose uniform bits are the same everywhere (torch's normal draws are not promised to be).
    Vectors (norms, biases) keep what the model's own, seeded, construction gave them.
    """
    with _DRAWING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    with torch.no_grad():
        for index, value in enumerate(model.state_dict().values()):
            if value.ndim >= 2 and value.is_floating_point():
                value.copy_(_draw(tuple(value.shape), seed, index))
    return model


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash of a state dict's names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _draw(shape: tuple[int, ...], seed: int, index: int) -> Tensor:
    """The index-th tensor of a seed: uniform, mean 0, variance 1 / fan-in."""
    generator = np.random.Generator(np.random.Philox(key=[seed, index]))
    uniform = generator.random(shape, dtype=np.float32) * 2 - 1
    return torch.from_numpy(uniform * np.float32(math.sqrt(3 / math.prod(shape[1:]))))


def _readings(raw: Mapping[str, Any]) -> Iterator[tuple[str, StateDict]]:
    """Every way to read the file: as it is, out of a wrapper, without a prefix of all keys."""
    inner = [(f"taken out of {w!r}", raw[w]) for w in WRAPPERS if isinstance(raw.get(w), Mapping)]
    for note, mapping in [("", raw), *inner]:
        if not mapping or not all(isinstance(v, Tensor) for v in mapping.values()):
            continue
        yield note, dict(mapping)
        for prefix in PREFIXES:
            if all(key.startswith(prefix) for key in mapping):
                stripped = {key.removeprefix(prefix): v for key, v in mapping.items()}
                yield "; ".join(filter(None, (note, f"prefix {prefix!r} taken off"))), stripped


def _compare(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> tuple[int, str]:
    """How many tensors are wrong, and a sentence that names the first ones."""
    missing = [key for key in wanted if key not in found]
    unexpected = [key for key in found if key not in wanted]
    misshapen = [
        f"{key} (expected {tuple(wanted[key].shape)}, found {tuple(found[key].shape)})"
        for key in wanted
        if key in found and wanted[key].shape != found[key].shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    parts = [f"{len(keys)} {kind}: {_some(keys)}" for kind, keys in kinds.items() if keys]
    return len(missing) + len(unexpected) + len(misshapen), "; ".join(parts)


def _is(key: str, prefixes: tuple[str, ...]) -> bool:
    """Whether the key belongs to one of the ignored parts."""
    return key.startswith(prefixes) if prefixes else False


def _some(keys: list[Any]) -> str:
    """The first few keys, and that there are more."""
    return ", ".join(map(str, keys[:_SHOWN])) + (", …" if len(keys) > _SHOWN else "")


def _first_line(error: Exception) -> str:
    """What the library said, without its advice to switch the safe loading off."""
    lines = str(error).strip().splitlines() or [""]
    return f"({type(error).__name__}: {lines[0][:160]})"
