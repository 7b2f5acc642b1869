"""A trainer callback that notes, for every step, what its time may have gone to: host, allocator or clocks.

A step is as long as its GPU works, or as its host needs to launch that work (`launched`: until the step's passes
return, which wait for nothing). Memory that is nearly full makes PyTorch give unused blocks back to the driver
(`retries`). A GPU that is hot or at its power limit lowers its clock. Each step is written as soon as it ends, so that
a process that is killed leaves those before.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.harness.clock import now
from benchmarks.harness.results import Row
from benchmarks.harness.worker import Progress

ASKED = ("clocks.sm", "power.draw", "temperature.gpu", "clocks_event_reasons.active")
EVERY_MS = 200


class StepWatch(TrainerCallback):  # type: ignore[misc]
    """Notes the rows of each step, its seconds and the host's part, memory, retries, and clocks.

    Args:
        progress: is told every step.

    Attributes:
        steps: what was noted.
    """

    def __init__(self, progress: Progress) -> None:
        self.steps: list[Row] = []
        self._progress = progress
        self._rows: list[int] = []
        self._launched = self._begun = 0.0
        self._clocks = Clocks(_command()) if torch.cuda.is_available() else None

    def attach(self, trainer: Any) -> None:
        """Note what the trainer's step does."""
        step = getattr(trainer, "preference_step", None)
        if step is None:
            return
        collate, backward = step.policy.collate, step.backward

        def collated(pairs: Sequence[Any], *others: Any, **named: Any) -> Any:
            self._rows.append(sum(pair.row_tokens for pair in pairs))
            return collate(pairs, *others, **named)

        def timed(*values: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            try:
                return backward(*values, **named)
            finally:
                self._launched += time.perf_counter() - begun

        step.policy.collate, step.backward = collated, timed

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the watch."""
        self._rows, self._launched, self._begun = [], 0.0, now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note a step."""
        ended = now()
        found: Row = {
            "seconds": round(ended - self._begun, 4),
            "launched": round(self._launched, 4),
            "rows": self._rows,
        }
        if self._rows:
            found["ms_a_token"] = round(1e3 * (ended - self._begun) / sum(self._rows), 5)
        if torch.cuda.is_available():
            memory = torch.cuda.memory_stats()
            found |= {
                "retries": memory["num_alloc_retries"],
                "out_of_memory": memory["num_ooms"],
                "allocated_peak_gib": round(memory["allocated_bytes.all.peak"] / 2**30, 2),
                "reserved_gib": round(memory["reserved_bytes.all.current"] / 2**30, 2),
                "free_gib": round(torch.cuda.mem_get_info()[0] / 2**30, 2),
            }
        if self._clocks is not None:
            found["clocks"] = self._clocks.between(self._begun, ended)
        self.steps.append(found)
        self._progress.write(partial={"steps": self.steps})

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Stop asking for clocks."""
        if self._clocks is not None:
            self._clocks.end()


class Clocks:
    """What a command prints about a GPU while a run goes on.

    Args:
        command: prints the values of `ASKED`, separated by commas, again and again.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._samples: list[tuple[float, list[str]]] = []
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def between(self, begun: float, ended: float) -> Row:
        """Return clocks (MHz), power (W), heat (C) and all reasons for low clocks of some seconds."""
        seen = [values for at, values in self._samples if begun <= at <= ended]
        if not seen:
            return {}
        clocks, power, heat = ([float(values[i]) for values in seen] for i in range(3))
        return {
            "least_mhz": min(clocks),
            "mean_mhz": round(sum(clocks) / len(clocks)),
            "mean_watts": round(sum(power) / len(power)),
            "most_watts": max(power),
            "most_celsius": max(heat),
            "reasons": sorted({values[3] for values in seen}),
        }

    def end(self) -> None:
        """End the command."""
        self._process.terminate()
        self._process.wait()
        self._thread.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            values = [value.strip() for value in line.split(",")]
            if len(values) == len(ASKED) and "[N/A]" not in values:
                self._samples.append((time.perf_counter(), values))


def _command() -> list[str]:
    device = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    asked = ["nvidia-smi", "-i", device, f"--query-gpu={','.join(ASKED)}", "--format=csv,noheader,nounits"]
    return [*asked, "-lms", str(EVERY_MS)]
