"""What a continued stage 2 has changed: both runs' encoders on patches of the old and new shards.

Stage 2 holds no patches out, so the old ones are a fixed sample of those that the old run has
learnt from: how well each projection still meets their targets, and how far their features have
moved. Labelled patches (--knn-labels) are measured with both, where they are given.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from mstar.data.shards.batches import Seat
from mstar.data.shards.format import ShardIndex, read_index, shards_folder
from mstar.data.shards.order import Cursor, OrderConfig
from mstar.errors import MstarError
from mstar.models.student import Student, build_student
from mstar.pretrain.forgetting import Part
from mstar.pretrain.shard_stream import StreamConfig, open_stream
from mstar.pretrain.stage2_batches import PROBE_SEED
from mstar.pretrain.stage2_config import Stage2Config
from mstar.pretrain.stage2_init import Start, initialise
from mstar.pretrain.stage2_knn import knn_check, read_labelled
from mstar.pretrain.stage2_resume import Inputs
from mstar.pretrain.stage2_watch import drift, effective_rank, encode, neighbours_kept
from mstar.training.engines import autocast

FIRST = ("cosine.targets", "effective_rank", "drift", "neighbours_kept", "knn.balanced_accuracy")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Patches:
    """Stored patches and their targets."""

    images: UInt8[Tensor, "patch side side 3"]
    targets: Float32[np.ndarray, "patch target"]


def compare(config: Stage2Config, start: Start, inputs: Inputs, device: torch.device) -> list[Part]:
    """Both runs on the old run's patches, on the new one's, and on labelled patches."""
    students = [_student(config, inputs, folder, device) for folder in (start.folder, config.out)]
    parts = [_old_part(config, start, students)]
    fresh = sample(config.shards, inputs.index, config.probe_patches)
    parts.append(_part("patches of this run", fresh, students, config))
    if config.knn_labels:
        patches = read_labelled(config.knn_labels)
        found = [
            knn_check(
                student,
                patches,
                neighbours=config.knn_neighbours,
                micro_batch=config.micro_batch,
                precision=config.engine.precision,
            )
            for student in students
        ]
        title = "labelled patches, by their neighbours"
        size = len(patches.label)
        parts.append(Part(title=title, size=size, unit="patches", before=found[0], after=found[1]))
    return parts


def sample(shards: str, index: ShardIndex, count: int) -> Patches:
    """Some patches of shards with their targets, the same for every run over them."""
    wanted = min(count, index.num_rows)
    order = OrderConfig(batch_size=min(64, wanted), lanes=1, seed=PROBE_SEED)
    config = StreamConfig(via="threads", max_bad_share=1.0)
    stream = open_stream(shards, order, Cursor(), Seat(), config)
    images: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    try:
        for _, batch in stream:
            good = batch.weights > 0
            images.append(np.array(batch.pixels[good]))
            targets.append(np.array(batch.targets[good], np.float32))
            if sum(map(len, images)) >= wanted:
                break
    finally:
        stream.close()
    pixels = torch.from_numpy(np.concatenate(images)[:wanted])
    return Patches(images=pixels, targets=np.concatenate(targets)[:wanted])


def _student(config: Stage2Config, inputs: Inputs, folder: str, device: torch.device) -> Student:
    """A run's exported encoder and projection."""
    index = inputs.index
    student = build_student(index.encoder.name, inputs.weights, target_dim=index.target_dim)
    initialise(student, folder, None)
    return student.to(device).eval()


def _old_part(config: Stage2Config, start: Start, students: list[Student]) -> Part:
    title = "patches of the run it started from"
    shards = config.old_shards or start.shards
    try:
        index = read_index(shards_folder(shards))
        patches = sample(shards, index, config.probe_patches)
    except (MstarError, OSError) as error:
        note = f"cannot be measured: {error}. Say where they are with --old-shards."
        return Part(title=title, size=0, unit="patches", notes=[note])
    note = "that run has learnt from them: stage 2 holds none out"
    return _part(title, patches, students, config, note)


def _part(
    title: str, patches: Patches, students: list[Student], config: Stage2Config, *notes: str
) -> Part:
    found = [_measured(student, patches, config) for student in students]
    (before, first), (after, second) = found
    moved = {"drift": drift(second, first), "neighbours_kept": neighbours_kept(second, first)}
    return Part(
        title=title,
        size=len(patches.images),
        unit="patches",
        before={**before, "drift": 0.0, "neighbours_kept": 1.0},
        after={**after, **moved},
        notes=list(notes),
    )


def _measured(
    student: Student, patches: Patches, config: Stage2Config
) -> tuple[dict[str, float], Float32[np.ndarray, "patch dim"]]:
    """The numbers of one run's encoder, and its features."""
    precision = config.engine.precision
    features = encode(student, patches.images, micro_batch=config.micro_batch, precision=precision)
    with torch.no_grad(), autocast(student.device, "float32"):
        projected = student.proj(torch.from_numpy(features).to(student.device)).cpu().numpy()
    cosine = (_unit(projected) * _unit(patches.targets)).sum(axis=1).mean()
    numbers = {"cosine.targets": float(cosine), "effective_rank": effective_rank(features)}
    return numbers, features


def _unit(rows: Float32[np.ndarray, "row dim"]) -> Float32[np.ndarray, "row dim"]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-12), np.float32)
