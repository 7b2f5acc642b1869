"""Triton's kernels compiled ahead of their first launch, several at once.

Triton compiles a kernel where it is first launched, and everything waits for it: the compiler, its assembler, and up to
Triton 3.6 a C compiler for the code that launches it. One after the other, the kernels of a first step take many
seconds, while a computer has many cores and the compilers let Python go on meanwhile.

So a pass is run first in which kernels of Wishbone that are not loaded yet are handed to threads instead of being
launched (`handed_over`). Its values mean nothing. What launches such a kernel later finds it loaded, waits for the
thread that has begun with it, or compiles it itself if none has. The kernels are the same, and so is every value that
is computed with them. Triton's own hook before a compilation tells which they are (docs/interceptions.md).

Nothing depends on a thread: a kernel that it cannot compile is compiled where it is launched, and fails there. When the
interpreter ends, threads finish the kernel that they have begun and begin no other. A forked process has none of the
threads, and compiles for itself.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

THREADS = 8
"""Most kernels that are compiled at once. A sixth of a compilation is Python's own and lets no other thread run, so
more would only slow down the thread that goes on with the run."""

OWN = f"{__name__.partition('.')[0]}."
"""How the names of modules begin whose kernels are handed over. Others' may be timed or looked at where they run."""

SAME = ("key", "signature", "constants", "configs", "specialization_data")
"""What Triton's hook says of a kernel, by which it is the same kernel."""


class _Notes(threading.local):
    """What a thread does."""

    hands_over = False
    launches = False
    loads: _Kernel | None = None


_notes = _Notes()
_lock = threading.Lock()


@dataclass(frozen=True, eq=False)
class _Kernel:
    """A kernel for one kind of arguments, as Triton's hook was asked about it."""

    function: Any
    asked: dict[str, Any]

    def load(self) -> None:
        """Compile it and load it onto the GPU that it was asked for, with the code that launches it."""
        from triton.runtime import driver

        driver.active.set_current_device(self.asked["device"])
        _notes.loads = self
        try:
            compiled = self.function.preload(self.asked["specialization_data"])
            if compiled is not None:
                _ = compiled.run
        finally:
            _notes.loads = None

    def is_same(self, asked: dict[str, Any]) -> bool:
        """Whether what Triton is about to compile is this kernel: it reads a description of it, which is text."""
        return all(asked[name] == self.asked[name] for name in SAME)


class _Compilation:
    """Kernels that are compiled ahead, and Triton's hook that asks about each before its compilation.

    Args:
        before: the hook that was set before, which is asked first.
    """

    def __init__(self, before: Any) -> None:
        self._before = before
        self._process = os.getpid()
        self._taken: dict[tuple[Any, ...], _Kernel] = {}
        self._begun: dict[tuple[Any, ...], threading.Event] = {}
        self._passes = self._busy = 0
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._threads = min(THREADS, cores)
        self._pool = ThreadPoolExecutor(self._threads, "compile")

    @classmethod
    def begun(cls) -> _Compilation:
        """Return Triton's hook for another pass, set now if it is not yet."""
        from triton import knobs

        with _lock:
            hook = knobs.runtime.jit_cache_hook
            if not isinstance(hook, _Compilation) or hook._process != os.getpid():
                hook = knobs.runtime.jit_cache_hook = _Compilation(hook)
            hook._passes += 1
            return hook

    def __call__(self, *, fn: Any, compile: dict[str, Any], **more: Any) -> bool | None:
        """Tell Triton whether to leave a kernel alone that it would compile and launch now."""
        if self._before is not None and self._before(fn=fn, compile=compile, **more):
            return True
        if self._process != os.getpid():
            return None
        if _notes.loads is not None:
            return not _notes.loads.is_same(compile)
        key = fn.jit_function, compile["device"], compile["specialization_data"]
        with _lock:
            begun = self._begun.get(key)
            takes = self._passes and _notes.hands_over and not _notes.launches
            if takes and f"{fn.module}.".startswith(OWN):
                if begun is None:
                    self._taken.setdefault(key, _Kernel(fn.jit_function, compile))
                return True
            self._taken.pop(key, None)
            self._leave_if_idle()
        if begun is not None:
            begun.wait()
        return None

    def end_pass(self) -> None:
        """Let threads begin with what was taken, unless another pass still takes more."""
        with _lock:
            self._passes -= 1
            more = 0 if self._passes else min(len(self._taken), self._threads - self._busy)
            self._leave_if_idle()
        with suppress(RuntimeError):  # there may be no further thread, or the interpreter ends
            for _ in range(more):
                self._pool.submit(self._next)

    def _next(self) -> None:
        """Load one kernel and ask for the next; the pool refuses that when the interpreter ends."""
        with _lock:
            key = next(iter(self._taken), None)
            if key is None:
                self._leave_if_idle()
                return
            kernel, loaded = self._taken.pop(key), threading.Event()
            self._begun[key] = loaded
            self._busy += 1
        try:
            kernel.load()
        finally:
            with _lock:
                self._busy -= 1
            loaded.set()
            self._pool.submit(self._next)

    def _leave_if_idle(self) -> None:
        """Set the hook from before again when nothing is left to be loaded."""
        from triton import knobs

        if self._passes or self._busy or self._taken:
            return
        if knobs.runtime.jit_cache_hook is self:
            knobs.runtime.jit_cache_hook = self._before
            self._pool.shutdown(wait=False)


def can_compile_ahead(device: torch.device) -> bool:
    """Return whether a device has kernels that Triton compiles."""
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    from triton import knobs

    return not knobs.runtime.interpret


@contextmanager
def handed_over() -> Iterator[None]:
    """Context in which this thread hands kernels that are not loaded to others, so that no value means anything.

    Backward passes run in this thread, too.
    """
    compilation = _Compilation.begun()
    _notes.hands_over = True
    try:
        with torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        _notes.hands_over = False
        compilation.end_pass()


def hands_over() -> bool:
    """Return whether this thread is within `handed_over`, so that values mean nothing."""
    return _notes.hands_over


@contextmanager
def launched() -> Iterator[None]:
    """Context in which this thread launches kernels all the same, for code that looks at their values."""
    _notes.launches = True
    try:
        yield
    finally:
        _notes.launches = False
