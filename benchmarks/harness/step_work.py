"""What one step asks of the host and of the GPU: where Python is, which kernels run, and one module's part of them.

Two steps after those that are timed are looked at. In the first a thread notes every 10 ms where the others are. The
second is profiled, which slows the host. A GPU whose kernels run for less time than a timed step has waited for it.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import TrainerCallback

from benchmarks.harness.results import Row

NAME = "the module"
SECONDS = 0.01
SHOWN = 25


class StepWork(TrainerCallback):  # type: ignore[misc]
    """Looks at the last two steps of a run.

    Args:
        steps: of the run.
        module: whose forward passes are told apart; None for those of the model that is trained.

    Attributes:
        found: what there is after the run.
    """

    def __init__(self, steps: int, module: nn.Module | None = None) -> None:
        self._steps, self._module = steps, module
        self._sampler: Sampler | None = None
        self._profile: Any = None
        self.found: Row = {}

    def on_train_begin(self, *_: Any, model: nn.Module, **__: Any) -> None:
        """Note the model."""
        self._module = self._module or model

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin to look where the step is one of the two."""
        left = self._steps - state.global_step
        if left == 2:
            self._sampler = Sampler()
        elif left == 1:
            assert self._module is not None
            run = self._module.forward

            def marked(*values: Any, **named: Any) -> Any:
                with record_function(NAME):
                    return run(*values, **named)

            self._module.forward = marked  # type: ignore[method-assign]
            kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            self._profile = profile(activities=kinds)
            self._profile.__enter__()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Sum up."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if self._sampler is not None:
            self.found["host_is_in"] = self._sampler.shares()
            self._sampler = None
        if self._profile is not None:
            assert self._module is not None
            self._profile.__exit__(None, None, None)
            del self._module.forward
            self.found |= _sums(self._profile.key_averages())
            self._profile = None


def kernels_of(run: Callable[[], Any]) -> Row:
    """Return which kernels something runs, and what the host does meanwhile, as `StepWork` sums them up."""
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=kinds) as profiled:
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return {name: value for name, value in _sums(profiled.key_averages()).items() if not name.startswith("module_")}


class Sampler:
    """Notes where all other threads are, until it is asked."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()
        self._samples = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def shares(self) -> dict[str, float]:
        """Stop; return the share of the time for which each function was on a stack, unless it always was."""
        self._ended.set()
        self._thread.join()
        at_times = [(name, count) for name, count in self._seen.most_common() if count < 0.99 * self._samples]
        return {name: round(count / self._samples, 3) for name, count in at_times[: 4 * SHOWN]}

    def _sample(self) -> None:
        while not self._ended.wait(SECONDS):
            self._samples += 1
            self._seen.update(_others())


def _others() -> set[str]:
    """Return the functions on the stacks of all other threads; no frame, and so no tensor in one, outlives the call."""
    functions: set[str] = set()
    for thread, frame in sys._current_frames().items():
        if thread != threading.get_ident():
            functions |= _functions(frame)
    return functions


def _functions(frame: FrameType | None) -> set[str]:
    found = set()
    while frame is not None:
        code = frame.f_code
        found.add(f"{Path(code.co_filename).parent.name}/{Path(code.co_filename).name} {code.co_qualname}")
        frame = frame.f_back
    return found


def _sums(events: Sequence[Any]) -> Row:
    """Seconds and counts of a profile."""
    kernels = [one for one in events if one.device_type.name == "CUDA" and one.key != NAME]
    of_module = [one for one in events if one.key == NAME and one.device_type.name == "CPU"]

    def most(of: Sequence[Any], time: str) -> dict[str, list[float]]:
        ordered = sorted(of, key=lambda one: -getattr(one, time))[:SHOWN]
        return {one.key[:80]: [round(getattr(one, time) / 1e6, 4), one.count] for one in ordered}

    return {
        "gpu_seconds": round(sum(one.self_device_time_total for one in kernels) / 1e6, 4),
        "kernels": sum(one.count for one in kernels),
        "module_passes": sum(one.count for one in of_module),
        "module_gpu_seconds": round(sum(one.device_time_total for one in of_module) / 1e6, 4),
        "module_host_seconds": round(sum(one.cpu_time_total for one in of_module) / 1e6, 4),
        "most_host_time": most(events, "self_cpu_time_total"),
        "most_gpu_time": most(kernels, "self_device_time_total"),
    }
