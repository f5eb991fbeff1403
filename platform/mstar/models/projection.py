"""The projection of a stage-2 export: from a patch encoder's features to the space of text."""

from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from mstar.errors import WeightsError

PROJECTION = "projection.safetensors"


def load_projection(path: Path) -> nn.Linear:
    """The projection of an export, from features to the space of targets and text.

    Raises:
        WeightsError: the file is none.
    """
    tensors = load_file(path)
    if set(tensors) != {"proj.weight", "proj.bias"}:
        raise WeightsError(
            f"{path}: expected proj.weight and proj.bias, got {', '.join(sorted(tensors)[:3])}. "
            f"Give the {PROJECTION} that `mstar stage2` wrote."
        )
    target_dim, dim = tensors["proj.weight"].shape
    projection = nn.Linear(dim, target_dim)
    projection.load_state_dict({k.removeprefix("proj."): v for k, v in tensors.items()})
    return projection.eval().requires_grad_(False)
