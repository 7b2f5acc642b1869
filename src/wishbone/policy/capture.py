"""What has to be different in a pass while it is recorded as a CUDA graph (`cuda_graphs.py`).

A capture notes the kernels of one stream and of those that wait for it. Whatever else asks the device something
meanwhile, in any library, ends it. So a pass that is recorded

    accumulates no gradients  each trained parameter is replaced by a stand-in over the same memory
    reads no earlier cast     autocast has no cache
    asks for no random state  recomputed layers draw nothing; the generator is a copy that a failure may spoil
    frees nothing elsewhere   garbage collection waits
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

UNDO = ("_cuda_endAllocateToPool", "_cuda_releasePool")
"""Functions of `torch._C` that clean up after a failed capture; without them nothing is recorded."""


class Capture:
    """One stream and one memory pool that all captures use.

    Attributes:
        stream: that passes are run and recorded on.
    """

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()
        self._pool: Any = torch.cuda.graph_pool_handle()

    @contextmanager
    def captured(self, graph: torch.cuda.CUDAGraph) -> Iterator[None]:
        """Context whose kernels go into a graph and do not run. `torch.cuda.graph` would free all caches each time."""
        torch.cuda.synchronize()
        with torch.cuda.stream(self.stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                yield
            finally:
                self._end(graph)

    def _end(self, graph: torch.cuda.CUDAGraph) -> None:
        """End a capture. Where that fails, PyTorch leaves its allocator directed to the pool; that is undone here."""
        try:
            graph.capture_end()
        except RuntimeError:
            device, (end, release) = torch.cuda.current_device(), (getattr(torch._C, name) for name in UNDO)
            with suppress(RuntimeError):  # already undone if the capture failed after its end
                end(device, self._pool)
                release(device, self._pool)
            raise


@contextmanager
def undisturbed() -> Iterator[None]:
    """Context of recordings without garbage collection and with a copy of the generator of random numbers.

    What garbage collection frees may be in use by another stream, and waiting for that would become part of a
    recording. A recording that fails leaves its generator unusable; the device's own is as before afterwards.
    """
    collected = gc.isenabled()
    gc.disable()
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    random_numbers = generator.graphsafe_get_state()
    generator.graphsafe_set_state(random_numbers.clone_state())
    try:
        yield
    finally:
        generator.graphsafe_set_state(random_numbers)
        if collected:
            gc.enable()


def autocast_without_cache() -> torch.autocast:
    """Autocast as it is now, without its cache: a recording must not read a cast weight that was made before it."""
    enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    return torch.autocast("cuda", dtype=dtype, enabled=enabled, cache_enabled=False)


@contextmanager
def stand_ins(model: nn.Module, trained: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Context in which each trained parameter is replaced in its module by another leaf over the same memory.

    The node that accumulates a parameter's gradient belongs to the stream on which it was first used, as long as
    anyone holds a graph with it, even that of a clone. A recording that used it would draw that stream in and fail.

    Yields:
        The leaves, in the order of `trained`.
    """
    found = {id(parameter): nn.Parameter(parameter.detach()) for parameter in trained}
    places = [
        (own, name, parameter)
        for own in (module._parameters for module in model.modules())
        for name, parameter in own.items()
        if id(parameter) in found
    ]
    for own, name, parameter in places:
        own[name] = found[id(parameter)]
    try:
        yield list(found.values())
    finally:
        for own, name, parameter in places:
            own[name] = parameter
