"""Moves tensors that a forward pass saves for its backward pass to host memory and back.

Each is copied to pinned host memory on a separate stream while the next layer computes. The backward pass needs them in
reverse order: when it asks for one, the copy of the one before starts, so that it has arrived when it is needed. Values
do not change. On the CPU there is nowhere to move to, and tensors stay where they are.

The two streams wait for each other by events alone, and memory belongs to the stream that computes: it waits for a copy
before it frees what is copied. So the same code runs in a pass that is recorded as CUDA graphs, where the copies become
part of the graphs. A graph holds addresses, so its pass takes `HostBuffers`, which stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from math import prod

import torch
from torch import Tensor, nn

MINIMUM_BYTES = 1 << 20
"""Smaller tensors stay on the device: starting a copy costs more than their memory is worth."""

HostMemory = Callable[[torch.Size, torch.dtype], Tensor]
"""Returns uninitialized pinned host memory for a tensor."""


def pinned(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Return pinned host memory of PyTorch's cache."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)


class HostBuffers:
    """Host memory that passes take in the same order and that stays where it is, for as long as this object lives.

    Args:
        allocate: where it comes from.
    """

    def __init__(self, allocate: HostMemory = pinned) -> None:
        self._allocate = allocate
        self._held: list[Tensor] = []
        self._outgrown: list[Tensor] = []

    def from_first(self) -> HostMemory:
        """Return what gives a pass its memory: the first buffer for the first tensor, and so on."""
        numbers = count()

        def take(shape: torch.Size, dtype: torch.dtype) -> Tensor:
            size, number = prod(shape) * dtype.itemsize, next(numbers)
            if number == len(self._held):
                self._held.append(self._allocate(torch.Size([size]), torch.uint8))
            elif self._held[number].numel() < size:  # recordings of shorter rows have its address
                self._outgrown.append(self._held[number])
                self._held[number] = self._allocate(torch.Size([size]), torch.uint8)
            return self._held[number][:size].view(dtype).view(shape)

        return take


@dataclass
class _Parked:
    """One tensor in host memory; on the device again once it is fetched."""

    host: Tensor
    device: torch.device
    before: _Parked | None
    arrived: torch.cuda.Event | None = None
    fetched: Tensor | None = None


class OffloadedPass:
    """Moves tensors to host memory in the order of a forward pass and fetches them in reverse, one ahead."""

    def __init__(self, memory: HostMemory) -> None:
        self._memory = memory
        self._last: _Parked | None = None
        self._stream: torch.cuda.Stream | None = None
        self._leaving: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def settle(self) -> None:
        """Let the current stream wait for all copies that were started: at the end of a pass, or of its recording."""
        if self._copied is not None:
            torch.cuda.current_stream().wait_event(self._copied)
        self._leaving = self._copied = None

    def pack(self, tensor: Tensor) -> Tensor | _Parked:
        """Start moving a tensor that is saved; small ones and parameters stay."""
        base = tensor if tensor._base is None else tensor._base
        if not tensor.is_cuda or isinstance(base, nn.Parameter) or tensor.nbytes < MINIMUM_BYTES:
            return tensor
        self.settle()  # the tensor before has had the time of a layer, and its memory is free from here on
        parked = _Parked(self._memory(tensor.shape, tensor.dtype), tensor.device, self._last)
        self._leaving, self._last = tensor.detach(), parked
        with self._copying(tensor.device):
            parked.host.copy_(self._leaving, non_blocking=True)
        return parked

    def unpack(self, kept: Tensor | _Parked) -> Tensor:
        """Return what `pack` was given, and start fetching the tensor that was saved before it."""
        if isinstance(kept, Tensor):
            return kept
        self._fetch(kept)
        if kept.before is not None:
            self._fetch(kept.before)
        assert kept.fetched is not None and kept.arrived is not None
        torch.cuda.current_stream(kept.device).wait_event(kept.arrived)
        tensor, kept.fetched = kept.fetched, None
        return tensor

    def _fetch(self, parked: _Parked) -> None:
        if parked.fetched is not None:
            return
        parked.fetched = torch.empty(parked.host.shape, dtype=parked.host.dtype, device=parked.device)
        with self._copying(parked.device) as stream:
            parked.fetched.copy_(parked.host, non_blocking=True)
            if not torch.cuda.is_current_stream_capturing():
                parked.fetched.record_stream(stream)  # a pass that fails drops it while it is copied
        parked.arrived = self._copied

    @contextmanager
    def _copying(self, device: torch.device) -> Iterator[torch.cuda.Stream]:
        """Context of a copy on the other stream, after all that the current stream was given so far."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            yield self._stream
            self._copied = self._stream.record_event()


@contextmanager
def offloaded_activations(memory: HostMemory = pinned) -> Iterator[OffloadedPass]:
    """Context of a forward pass whose saved tensors wait in host memory; the backward pass fetches them itself.

    Args:
        memory: where they wait.

    Yields:
        what moves them. A recording of the backward pass has to end with its `settle`.
    """
    moved = OffloadedPass(memory)
    with torch.autograd.graph.saved_tensors_hooks(moved.pack, moved.unpack):
        try:
            yield moved
        finally:
            moved.settle()
