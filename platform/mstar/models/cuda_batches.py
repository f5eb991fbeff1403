"""Batches in flight on a GPU: the next one is copied over while the current one is computed.

Two slots, each with a page-locked input, a device input, a page-locked output and two events:

    host     copy into the pinned input
    copy     .........................  host → device, event `copied`
    compute  ......................................................  model, device → host, `done`

A slot is used again only after its batch was collected, so no buffer is overwritten while in use.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

SLOTS = 2

Compute = Callable[[Tensor], Tensor]


class PendingCudaBatch:
    """A batch whose copies and kernels are queued; `result` waits for its last copy."""

    def __init__(self, features: Float32[Tensor, "batch dim"], done: torch.cuda.Event) -> None:
        """`features` is the slot's pinned output, valid until the slot is used again."""
        self._features = features
        self._done = done
        self._result: Float32[np.ndarray, "batch dim"] | None = None

    def result(self) -> Float32[np.ndarray, "batch dim"]:
        """Wait, then return the features as an array of their own."""
        if self._result is None:
            self._done.synchronize()
            self._result = self._features.numpy().copy()
        return self._result


class _Slot:
    """The buffers and events of one batch in flight."""

    def __init__(self, batch_shape: tuple[int, ...], dim: int, device: torch.device) -> None:
        self.host = torch.empty(batch_shape, dtype=torch.uint8, pin_memory=True)
        self.images = torch.empty(batch_shape, dtype=torch.uint8, device=device)
        self.features = torch.empty((batch_shape[0], dim), dtype=torch.float32, pin_memory=True)
        self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        # Waiting puts the thread to sleep, so that readers get its core.
        self.done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self.pending: PendingCudaBatch | None = None


class CudaBatches:
    """Queues whole batches of one shape on one device; for one thread."""

    def __init__(
        self, compute: Compute, *, batch_shape: tuple[int, ...], dim: int, device: torch.device
    ) -> None:
        """`compute` takes uint8 images on the device to float32 features on the device."""
        self._compute = compute
        self._device = device
        self._copy_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._slots = [_Slot(batch_shape, dim, device) for _ in range(SLOTS)]
        self._next = 0

    def submit(self, batch: UInt8[Tensor, "batch height width 3"]) -> PendingCudaBatch:
        """Queue a batch; it may be overwritten as soon as this returns."""
        slot = self._slots[self._next]
        self._next = (self._next + 1) % SLOTS
        if slot.pending is not None:  # collected or not, its buffers are free after this
            slot.pending.result()
        slot.host.copy_(batch)
        compute_stream = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._copy_stream):
            slot.images.copy_(slot.host, non_blocking=True)
            slot.copied.record(self._copy_stream)
        compute_stream.wait_event(slot.copied)
        slot.features.copy_(self._compute(slot.images), non_blocking=True)
        slot.done.record(compute_stream)
        slot.pending = PendingCudaBatch(slot.features, slot.done)
        return slot.pending
