"""The files of a run directory: metrics line by line, environment, configuration, summary.

Each line is written at once and whole files are replaced atomically, so a run that is killed leaves readable files.
NaN and infinity become null, because JSON has no word for them.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from wishbone.atomic_file import write_text
from wishbone.config.run_directory import removed_meanwhile
from wishbone.data.json_text import parse_json
from wishbone.errors import RunError, counted
from wishbone.planning.hardware import read_cpu
from wishbone.strict_json import without_nan
from wishbone.version import __version__

logger = logging.getLogger(__name__)

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


class MetricsFile(TrainerCallback):  # type: ignore[misc]
    """Appends every log of the trainer to `metrics.jsonl`, one JSON object a line.

    Beside the trainer's own names a line has `step` and `seconds` (of training, without the pauses of a resumed run),
    one of training also `memory_gib` (peak so far).
    A line that cannot be written, as on a full disk, is left out, and training continues.

    Attributes:
        lost: lines that could not be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._began = time.monotonic()
        self._earlier: float | None = None
        self.lost = 0

    def begin_anew(self) -> None:
        """Drop the lines of an attempt that ended before its first checkpoint: its steps run again."""
        if self._path.is_file():
            self._replace([])

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Drop the lines after the checkpoint that the run resumes from: these steps run again."""
        if not state.global_step or not state.is_world_process_zero or not self._path.is_file():
            return
        try:
            lines = self._path.read_bytes().splitlines(keepends=True)
        except OSError:
            return  # the first line that cannot be written says so
        logged = sum(entry["step"] == state.global_step for entry in state.log_history)
        kept: list[bytes] = []
        newest = unreadable = 0
        for line in lines:
            step = _step_of(line)
            unreadable += step is None
            if step is None or not newest <= step <= state.global_step:
                continue
            newest = step
            if step == state.global_step:
                logged -= 1
                if logged < 0:
                    continue
            kept.append(line)
        if unreadable:
            logger.warning("%s: %s could not be read and were removed.", self._path, counted(unreadable, "line"))
        if len(kept) < len(lines):
            self._replace(kept)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Append one line.

        Raises:
            RunError: the run directory is gone; a checkpoint would make a part of it again.
        """
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        if self._earlier is None:
            self._earlier = _last_seconds(self._path)
        seconds = self._earlier + time.monotonic() - self._began
        memory = {"memory_gib": round(peak_memory_gib(), 3)} if "loss" in logs else {}
        line = {"step": state.global_step, "seconds": round(seconds, 3), **logs, **memory}
        try:
            _append(self._path, json.dumps(without_nan(line), allow_nan=False) + "\n")
        except OSError as error:
            if gone := removed_meanwhile(self._path.parent):
                raise RunError(gone) from error
            self.lost += 1
            if self.lost == 1:
                self._say_unwritable(error, "training continues without its lines")

    def _replace(self, lines: list[bytes]) -> None:
        try:
            write_text(self._path, b"".join(lines).decode("utf-8"))
        except OSError as error:
            self._say_unwritable(error, "lines of steps that come again stay in it")

    def _say_unwritable(self, error: OSError, so: str) -> None:
        logger.warning("%s cannot be written (%s): %s", self._path, error.strerror or type(error).__name__, so)


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
        "device_name": torch.cuda.get_device_name() if cuda else read_cpu().model,
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
    write_text(path, json.dumps(without_nan(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _append(path: Path, line: str) -> None:
    """Append a line whole, or leave the file as it was."""
    with path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        content = line.encode()
        try:
            if file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with suppress(OSError):
                file.truncate(size)
            raise


def _last_seconds(path: Path) -> float:
    """Return the seconds of the last line that an earlier part of the run wrote; a cut-off last line is removed."""
    if not path.is_file():
        return 0.0
    try:
        lines = path.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(sum(map(len, lines[:-1])))
            lines.pop()
        return float(parse_json(lines[-1])["seconds"]) if lines else 0.0
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return 0.0  # it cannot be read, or something else damaged a line; the report says so


def _step_of(line: bytes) -> int | None:
    """The step of a whole line of metrics, or None."""
    try:
        step = parse_json(line.decode("utf-8"))["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) and line.endswith(b"\n") else None
