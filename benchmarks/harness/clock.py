"""A trainer callback that times optimizer steps and counts compilations.

The clock waits for the device at both ends of a step. A step starts when its batch is ready, so it excludes preparing
batches; `seconds_between` runs from the end of one step to the end of the next and includes everything. Peak memory
counts from the end of the first step on, when optimizer state and caches exist.

Compilations are graphs (torch.compile) and Triton kernels. A kernel counts once for each set of types, alignments and
constants that it is called with, even if its machine code came from a file.
"""

from __future__ import annotations

import resource
import time
from importlib.util import find_spec
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.harness.results import Row
from benchmarks.harness.worker import Progress


class Compilations:
    """What this process has compiled so far."""

    def __init__(self) -> None:
        from torch._dynamo.utils import counters

        self._counters, self._kernels = counters, 0
        if torch.cuda.is_available() and find_spec("triton"):
            from triton import knobs

            knobs.runtime.jit_post_compile_hook = self._compiled

    def _compiled(self, *_: Any, **__: Any) -> None:
        self._kernels += 1

    def count(self) -> dict[str, int]:
        """Return how many graphs and kernels were compiled."""
        return {"graphs": int(self._counters["stats"]["unique_graphs"]), "kernels": self._kernels}


class Clock(TrainerCallback):  # type: ignore[misc]
    """Times the steps of a run.

    Attributes:
        seconds: seconds of each step.
        seconds_between: seconds between the ends of consecutive steps, one fewer than steps.
        processor_seconds: the same in seconds of processor time of this process, all its threads together.
        allocation_retries: how often, until the end of each step, PyTorch gave unused memory back to the driver because
            an allocation found none.
        first_step_done: when the first step ended (`time.perf_counter`).
        start_peak: peak bytes on the GPU until then.
        compiled_at_start: compilations until then.
    """

    def __init__(self, steps: int, progress: Progress) -> None:
        self.seconds: list[float] = []
        self.seconds_between: list[float] = []
        self.processor_seconds: list[float] = []
        self.allocation_retries: list[int] = []
        self.first_step_done = 0.0
        self.start_peak = 0
        self.compiled_at_start: dict[str, int] = {}
        self.compilations = Compilations()
        self._steps, self._progress = steps, progress
        self._begun = self._ended = self._processor = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the watch."""
        if len(self.seconds) < 2:
            self._progress.phase(f"step {len(self.seconds) + 1} of {self._steps}")
        self._begun = now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop the watch."""
        moment = now()
        self.seconds.append(moment - self._begun)
        if torch.cuda.is_available():
            self.allocation_retries.append(torch.cuda.memory_stats()["num_alloc_retries"])
        if len(self.seconds) > 1:
            self.seconds_between.append(moment - self._ended)
            self.processor_seconds.append(time.process_time() - self._processor)
        else:
            self.first_step_done = moment
            self.compiled_at_start = self.compilations.count()
            if torch.cuda.is_available():
                self.start_peak = torch.cuda.max_memory_allocated()
                torch.cuda.reset_peak_memory_stats()
        self._ended, self._processor = moment, time.process_time()

    def figures(self, warm_up: int, timed: int, pairs_a_step: int, ready: float) -> Row:
        """Return the figures of a row about the steps so far.

        Args:
            warm_up: the first steps, which do not count, at least 1.
            timed: those after them that do.
            pairs_a_step: pairs that each trained on.
            ready: when the model was loaded.
        """
        seconds = self.seconds[warm_up : warm_up + timed]
        between = self.seconds_between[warm_up - 1 : warm_up + timed - 1]
        pairs = pairs_a_step * len(seconds)
        return {
            "pairs_per_s": round(pairs / sum(seconds), 4),
            "pairs_per_s_with_data": round(pairs / sum(between), 4),
            "step_seconds": [round(value, 4) for value in self.seconds],
            "allocation_retries": self.allocation_retries,
            "first_step_seconds": round(self.first_step_done - ready, 2),
            "compiled_at_start": self.compiled_at_start,
            "compiled_later": self.compiled_later(),
            "start_peak_gib": round(self.start_peak / 2**30, 3),
        }

    def compiled_later(self) -> dict[str, int]:
        """Return what was compiled after the first step."""
        return {name: count - self.compiled_at_start[name] for name, count in self.compilations.count().items()}


def peak_gib() -> dict[str, float]:
    """Return peaks in GiB: allocated and reserved on the GPU since the last reset, resident in host memory ever.

    Memory that CUDA graphs hold counts as allocated, whether or not a tensor lives in it.
    """
    peaks = {"host_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    if torch.cuda.is_available():
        graphs = [part for part in torch.cuda.memory_snapshot() if part["segment_pool_id"] != (0, 0)]
        held = sum(part["total_size"] - part["allocated_size"] for part in graphs)
        peaks["peak_gib"] = (torch.cuda.max_memory_allocated() + held) / 2**30
        peaks["peak_reserved_gib"] = torch.cuda.max_memory_reserved() / 2**30
    else:
        peaks["peak_gib"] = peaks["host_peak_gib"]
    return {name: round(value, 3) for name, value in peaks.items()}


def now() -> float:
    """Return seconds of a clock that first waits for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
