"""The files of a run directory: metrics line by line, environment, configuration, summary.

Each line is written at once and whole files are replaced atomically, so a run that is killed leaves readable files.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from wishbone.version import __version__

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


class MetricsFile(TrainerCallback):  # type: ignore[misc]
    """Appends every log of the trainer to `metrics.jsonl`, one JSON object a line.

    Beside the trainer's own names a line has `step` and `seconds` (of training, without the pauses of a resumed run).
    NaN and infinity become null, because JSON has no word for them.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._began = time.monotonic() - _last_seconds(path)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Drop the lines of steps that were done after the checkpoint that the run continues from: they come again."""
        if not state.is_world_process_zero or not self._path.exists():
            return
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["step"] <= state.global_step]
        if len(kept) < len(lines):
            write_text(self._path, "".join(kept))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Append one line."""
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        line = {"step": state.global_step, "seconds": round(time.monotonic() - self._began, 3), **logs}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({name: _finite(value) for name, value in line.items()}) + "\n")


def environment() -> dict[str, Any]:
    """Return what a result depends on besides its configuration: versions and hardware."""
    cuda = torch.cuda.is_available()
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "wishbone": __version__,
        "libraries": {name: version(name) for name in LIBRARIES},
        "device": "cuda" if cuda else "cpu",
        "device_name": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def peak_memory_gib() -> float:
    """Return the peak memory of this process in GiB: of the GPU if there is one, else its resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def write_json(path: Path, value: Any) -> None:
    """Replace the file by `value` as JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace the file by `text`, atomically."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _last_seconds(path: Path) -> float:
    """Return the seconds of the last line that an earlier part of the run wrote; a cut-off last line is removed."""
    if not path.exists():
        return 0.0
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
        write_text(path, "".join(lines))
    return float(json.loads(lines[-1])["seconds"]) if lines else 0.0
