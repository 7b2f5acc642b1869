"""A trainer callback that notes the GPU's peak memory for each part of an optimizer step.

Imported in a child process alone: the callback's base class comes from transformers.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.harness.clock import now
from benchmarks.harness.results import Row

PARTS = ("held_before", "forward", "backward", "clipping", "optimizer")


class MemoryWatch(TrainerCallback):  # type: ignore[misc]
    """Peaks in GiB: of forward and backward passes, clipping and optimizer, and what is held between steps."""

    def __init__(self) -> None:
        self.parts: list[dict[str, float]] = []
        self.run_peak = 0.0
        self.begun = 0.0

    def attach(self, trainer: Any) -> None:
        """Note peaks as the trainer's backward passes begin and end."""
        own = trainer.accelerator.backward

        def backward(*args: Any, **kwargs: Any) -> None:
            self.note("forward")
            own(*args, **kwargs)
            self.note("backward")

        trainer.accelerator.backward = backward

    def note(self, part: str) -> None:
        """Count the peak since the end of the last part as this part's."""
        peak = peak_gib()
        self.run_peak = max(self.run_peak, peak)
        if self.parts:
            self.parts[-1][part] = max(self.parts[-1].get(part, 0.0), peak)
        reset_peak()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Begin a step."""
        self.run_peak = max(self.run_peak, peak_gib())
        reset_peak()
        self.parts.append({"held_before": allocated_gib()})
        self.begun = now()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Gradients are clipped."""
        self.note("clipping")

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """End a step."""
        self.note("optimizer")
        self.parts[-1]["seconds"] = round(now() - self.begun, 3)

    def found(self) -> Row:
        """Return the peaks of the steps after the first, which includes profiling."""
        parts = {name: max(part.get(name, 0.0) for part in self.parts[1:]) for name in PARTS}
        return {
            "peak_gib": max(parts.values()),
            "run_peak_gib": self.run_peak,
            "parts_gib": parts,
            "step_seconds": [part["seconds"] for part in self.parts],
        }


def peak_gib() -> float:
    """Return the peak since the last reset in GiB; 0 without a GPU."""
    return round(torch.cuda.max_memory_allocated() / 2**30, 3) if torch.cuda.is_available() else 0.0


def allocated_gib() -> float:
    """Return what is allocated now in GiB; 0 without a GPU."""
    return round(torch.cuda.memory_allocated() / 2**30, 3) if torch.cuda.is_available() else 0.0


def reset_peak() -> None:
    """Start counting the peak anew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
