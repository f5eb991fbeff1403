"""The k-NN check: do a patch's nearest labelled neighbours have its label?

The table (Parquet, columns `jpeg` and `label`, and optionally `case_id`) is the user's; neighbours
of the same case do not vote, where cases are given.
"""

import io
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
import simplejpeg
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from mstar.errors import TableError
from mstar.models.student import Student
from mstar.pretrain.stage2_watch import encode
from mstar.storage import objects


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelledPatches:
    """Patches of one size with a label each; case −1 − row where no case is given."""

    images: UInt8[Tensor, "patch side side 3"]
    label: Int64[np.ndarray, " patch"]
    case: Int64[np.ndarray, " patch"]
    names: tuple[str, ...]


def read_labelled(uri: str) -> LabelledPatches:
    """Read a table of labelled patches.

    Raises:
        TableError: a column is missing, or images differ in size.
    """
    table = pq.read_table(io.BytesIO(objects.read_bytes(uri)))
    missing = {"jpeg", "label"} - set(table.column_names)
    if missing:
        raise TableError(
            f"{uri}: expected the columns jpeg and label, got {', '.join(table.column_names)}. "
            "Write them as Parquet."
        )
    images = [simplejpeg.decode_jpeg(cell.as_py(), "RGB") for cell in table["jpeg"]]
    sizes = {image.shape for image in images}
    if len(sizes) != 1:
        raise TableError(f"{uri}: expected images of one size, got {sorted(sizes)[:3]}.")
    names, label = np.unique(np.array(table["label"].to_pylist(), str), return_inverse=True)
    case = -1 - np.arange(len(images))
    if "case_id" in table.column_names:
        case = np.unique(table["case_id"].to_pylist(), return_inverse=True)[1]
    return LabelledPatches(
        images=torch.from_numpy(np.stack(images)),
        label=label.astype(np.int64),
        case=case.astype(np.int64),
        names=tuple(names.tolist()),
    )


def knn_accuracy(
    features: Float[np.ndarray, "patch dim"],
    label: Int64[np.ndarray, " patch"],
    case: Int64[np.ndarray, " patch"],
    neighbours: int,
) -> float:
    """Balanced accuracy of the majority among the nearest other-case patches, by cosine."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    cosines = unit @ unit.T
    cosines[case[:, None] == case[None, :]] = -np.inf
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, : min(neighbours, len(unit) - 1)]
    votes = np.eye(label.max() + 1)[label[nearest]].sum(1)
    right = votes.argmax(1) == label
    return float(np.mean([right[label == one].mean() for one in np.unique(label)]))


def knn_check(
    student: Student, patches: LabelledPatches, *, neighbours: int, micro_batch: int, precision: str
) -> dict[str, float]:
    """The check with the student as it is."""
    found = encode(student, patches.images, micro_batch=micro_batch, precision=precision)
    return {
        "knn.balanced_accuracy": knn_accuracy(found, patches.label, patches.case, neighbours),
        "knn.chance": 1 / len(patches.names),
    }
