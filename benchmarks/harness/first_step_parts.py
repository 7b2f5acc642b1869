"""What happens until a first step has ended: how long each part takes, and which kernels are compiled meanwhile."""

from __future__ import annotations

import hashlib
import importlib
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from benchmarks.harness.results import Row

PARTS = {
    "TRL's constructor": "wishbone.trainer.trainer:DPOTrainer._construct_trl",
    "handing over trials": "wishbone.trainer.trainer:compile_trial_kernels",
    "trial for noise": "wishbone.trainer.trainer:noise_reason",
    "fused layers": "wishbone.trainer.assembly:_fused_layers",
    "handing over the step": "wishbone.trainer.assembly:_compile_ahead",
    "form": "wishbone.trainer.assembly:choose_form",
    "coverage": "wishbone.trainer.assembly:coverage_of",
    "reference": "wishbone.trainer.assembly:_reference",
    "one pass beside two": "wishbone.trainer.assembly:why_apart",
    "optimizer": "wishbone.trainer.trainer:DPOTrainer.create_optimizer",
    "profiling": "wishbone.trainer.profiling:profile_rows",
    "recording": "wishbone.trainer.profiling:with_cuda_graphs",
    "check of the start": "wishbone.trainer.trainer:DPOTrainer._check_start",
    "step": "wishbone.trainer.step_loop:StepLoop.compute_gradients",
}
"""The functions that are timed; some lie in others."""

AHEAD = ("wishbone.trainer.trainer:compile_trial_kernels", "wishbone.trainer.assembly:compile_ahead")
"""What hands kernels over to threads."""


class Parts:
    """Context in which the functions of `PARTS` are timed, the GPU's work included."""

    def __init__(self) -> None:
        self._calls: list[tuple[str, float, float]] = []
        self._kept: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Parts:
        for name, place in PARTS.items():
            owner, attribute = _place(place)
            self._kept.append((owner, attribute, getattr(owner, attribute)))
            setattr(owner, attribute, self._timed(name, getattr(owner, attribute)))
        return self

    def __exit__(self, *_: object) -> None:
        for owner, attribute, function in self._kept:
            setattr(owner, attribute, function)

    def since(self, moment: float) -> dict[str, list[list[float]]]:
        """Return [began, took] of each call, in seconds, counted from a moment of `time.perf_counter`."""
        found: dict[str, list[list[float]]] = {}
        for name, began, ended in sorted(self._calls, key=lambda call: call[1]):
            found.setdefault(name, []).append([round(began - moment, 2), round(ended - began, 2)])
        return found

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        from benchmarks.harness.clock import now

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = now()
            try:
                return function(*args, **kwargs)
            finally:
                self._calls.append((name, began, now()))

        return timed


class Kernels:
    """Triton's kernels that a process compiled or read from a cache, and in which kind of thread."""

    def __init__(self) -> None:
        self._found: list[Row] = []

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Context in which they are noted; without Triton there are none."""
        if not find_spec("triton"):
            yield
            return
        from triton import knobs

        before, knobs.compilation.listener = knobs.compilation.listener, self._note
        try:
            yield
        finally:
            knobs.compilation.listener = before

    def _note(self, *, src: Any, times: Any, cache_hit: bool, **_: Any) -> None:
        ahead = threading.current_thread() is not threading.main_thread()
        seconds = 0.0 if cache_hit else times.total / 1e6
        self._found.append({"name": src.name, "seconds": round(seconds, 2), "read": cache_hit, "ahead": ahead})

    def summary(self) -> Row:
        """Return how many were compiled and read, in threads and by the main one, and the seconds of compilation."""
        compiled = [one for one in self._found if not one["read"]]
        return {
            "compiled_ahead": sum(one["ahead"] for one in compiled),
            "compiled_at_launch": sum(not one["ahead"] for one in compiled),
            "read_ahead": sum(one["ahead"] for one in self._found if one["read"]),
            "read_at_launch": sum(not one["ahead"] for one in self._found if one["read"]),
            "compiler_seconds": round(sum(one["seconds"] for one in compiled), 2),
            "at_launch": [f"{one['name']} {one['seconds']}" for one in compiled if not one["ahead"]],
        }


def without_threads() -> None:
    """Let every kernel be compiled where it is first launched, for the rest of this process."""
    for place in AHEAD:
        owner, attribute = _place(place)
        getattr(owner, attribute)
        setattr(owner, attribute, lambda *_, **__: None)


def digest(tensors: Iterable[Any]) -> str:
    """Return the beginning of a hash of tensors' bits."""
    import torch

    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _place(text: str) -> tuple[Any, str]:
    """Return the object that has an attribute, and the attribute's name, of `module:Class.attribute`."""
    module, _, path = text.partition(":")
    *outer, attribute = path.split(".")
    owner = importlib.import_module(module)
    for name in outer:
        owner = getattr(owner, name)
    return owner, attribute
