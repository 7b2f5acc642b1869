"""Moves tensors that a forward pass saves for its backward pass to host memory and back.

Each is copied to pinned host memory on a separate stream while the next layer computes. The backward pass needs them in
reverse order: when it asks for one, the copy of the one before starts, so that it has arrived when it is needed. Values
do not change. On the CPU there is nowhere to move to, and tensors stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MINIMUM_BYTES = 1 << 20
"""Smaller tensors stay on the device: starting a copy costs more than their memory is worth."""


@dataclass
class _Parked:
    """One tensor in host memory; on the device again once it is fetched."""

    host: Tensor
    device: torch.device
    before: _Parked | None
    arrived: torch.cuda.Event | None = None
    fetched: Tensor | None = None


class _HostMemory:
    """Moves tensors to host memory in the order of a forward pass and fetches them in reverse, one ahead."""

    def __init__(self) -> None:
        self._last: _Parked | None = None
        self._stream: torch.cuda.Stream | None = None

    def pack(self, tensor: Tensor) -> Tensor | _Parked:
        base = tensor if tensor._base is None else tensor._base
        if not tensor.is_cuda or isinstance(base, nn.Parameter) or tensor.nbytes < MINIMUM_BYTES:
            return tensor
        stream = self._copy_stream(tensor.device)
        stream.wait_stream(torch.cuda.current_stream(tensor.device))
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        with torch.cuda.stream(stream):
            host.copy_(tensor.detach(), non_blocking=True)
        tensor.record_stream(stream)
        self._last = _Parked(host, tensor.device, self._last)
        return self._last

    def unpack(self, kept: Tensor | _Parked) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        self._fetch(kept)
        if kept.before is not None:
            self._fetch(kept.before)
        current = torch.cuda.current_stream(kept.device)
        assert kept.fetched is not None and kept.arrived is not None
        current.wait_event(kept.arrived)
        tensor, kept.fetched = kept.fetched, None
        tensor.record_stream(current)
        return tensor

    def _fetch(self, parked: _Parked) -> None:
        if parked.fetched is not None:
            return
        stream = self._copy_stream(parked.device)
        with torch.cuda.stream(stream):
            parked.fetched = parked.host.to(parked.device, non_blocking=True)
            parked.arrived = stream.record_event()

    def _copy_stream(self, device: torch.device) -> torch.cuda.Stream:
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        return self._stream


@contextmanager
def offloaded_activations() -> Iterator[None]:
    """Context of a forward pass whose saved tensors wait in host memory; the backward pass fetches them itself."""
    memory = _HostMemory()
    with torch.autograd.graph.saved_tensors_hooks(memory.pack, memory.unpack):
        yield
