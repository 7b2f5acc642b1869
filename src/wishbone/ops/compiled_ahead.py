"""Triton's kernels compiled ahead of their first launch, several at once.

Triton compiles a kernel where it is first launched, and everything waits for it: the compiler, its assembler, and up to
Triton 3.6 a C compiler for the code that launches it. One after the other, the kernels of a first step take many
seconds, while a computer has many cores and the compilers let Python go on meanwhile.

So a pass is run first in which kernels that are not loaded yet are handed to threads instead of being launched
(`handed_over`). Its values mean nothing. What launches such a kernel later waits for its thread, or finds it loaded.
The kernels are the same, and so is every value that is computed with them. Triton's own hook before a compilation tells
which they are (docs/interceptions.md).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import torch

THREADS = 12
"""Most kernels that are compiled at once. Python's own part of a compilation lets no other run, about a sixth of it."""

_thread = threading.local()


class _Compilation:
    """Kernels that are being compiled, and Triton's hook that asks about each before its compilation.

    Args:
        device: the GPU that they are loaded on.
        before: the hook that was set before, which is asked first.
    """

    def __init__(self, device: torch.device, before: Any) -> None:
        self.before = before
        self.done = False
        self._device = device
        self._pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), "compile", initializer=self._begin_thread)
        self._asked: dict[tuple[Any, str], Future[None] | None] = {}
        self._lock = threading.Lock()
        self._takes = True

    def __call__(self, *, fn: Any, compile: dict[str, Any], **more: Any) -> bool | None:
        """Tell Triton whether to leave a kernel alone that it would compile and launch now."""
        if self.before is not None and self.before(fn=fn, compile=compile, **more):
            return True
        if getattr(_thread, "compiles", False):
            return None
        key = fn.jit_function, compile["specialization_data"]
        with self._lock:
            left_alone = self._takes and not getattr(_thread, "launches", False)
            if left_alone:
                self._asked.setdefault(key)
            loading = self._asked.get(key)
        if not left_alone and loading is not None:
            wait([loading])  # Triton then reads it from its cache, or fails as the thread did
        return left_alone

    def end(self) -> None:
        """Compile what was taken, all of it at once; when it is loaded, Triton asks the hook from before alone."""
        with self._lock:
            self._takes = False
            self._asked = {key: self._pool.submit(_load, *key) for key in self._asked}
        self._pool.submit(self._leave)
        self._pool.shutdown(wait=False)

    def _leave(self) -> None:
        from triton import knobs

        wait([future for future in self._asked.values() if future is not None])
        self.done, hook = True, knobs.runtime.jit_cache_hook
        while isinstance(hook, _Compilation) and hook.done:
            hook = hook.before
        knobs.runtime.jit_cache_hook = hook

    def _begin_thread(self) -> None:
        _thread.compiles = True
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)


def _load(kernel: Any, specialization: str) -> None:
    """Compile a kernel and load it onto this thread's GPU, with the code that launches it."""
    compiled = kernel.preload(specialization)
    if compiled is not None:
        _ = compiled.run


@contextmanager
def handed_over(device: torch.device) -> Iterator[None]:
    """Context in which kernels that are not loaded are handed to threads and not launched: no value means anything.

    Args:
        device: the GPU that the kernels are loaded on.
    """
    from triton import knobs

    compilation = _Compilation(device, knobs.runtime.jit_cache_hook)
    knobs.runtime.jit_cache_hook = compilation
    _thread.hands_over = True
    try:
        yield
    finally:
        _thread.hands_over = False
        compilation.end()


def hands_over() -> bool:
    """Return whether this thread is within `handed_over`, so that values mean nothing."""
    return getattr(_thread, "hands_over", False)


@contextmanager
def launched() -> Iterator[None]:
    """Context in which this thread launches kernels all the same, for code that looks at their values."""
    _thread.launches = True
    try:
        yield
    finally:
        _thread.launches = False
