"""Reads a run directory in any state: complete, still running, stopped, or damaged.

Everything that can be read is returned, and the rest is reported. Nothing in the files is trusted: values may have any
type, any key may be missing, the last line of `metrics.jsonl` may be cut off. A resumed run repeats steps that it had
already logged; the later attempt counts, and lines of the earlier one after its checkpoint are dropped.
"""

from __future__ import annotations

import json
import math
import os
import stat
from bisect import bisect_left, insort
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from wishbone.config.document import read_document, show_path
from wishbone.config.explain import nearest
from wishbone.config.run_directory import LOCK
from wishbone.errors import RequestError
from wishbone.paths import user_path

CONFIG, ENVIRONMENT, METRICS, SUMMARY = "config.yaml", "environment.json", "metrics.jsonl", "summary.json"
ANSWERS, ERROR_LOG, GUARD, PAIRS = "answers.json", "error.log", "guard.jsonl", "pairs.json"
HELDOUT_PREFIX = "eval_"
LARGEST = 1e100
MOST_BYTES = 2**28
"""Bytes of a file that are read: half a million lines of metrics."""


@dataclass(frozen=True)
class RunRecord:
    """Content of a run directory.

    Attributes:
        path: the directory.
        config: settings by section, unchecked.
        environment, summary: as written, or empty.
        metrics: points (step, value) by metric, in the order of steps; held-out metrics have the prefix `eval_`. Null
            becomes NaN, and values beyond 1e100 become infinite.
        answers: entries of `answers.json` that are mappings.
        guard: lines of `guard.jsonl` that are mappings.
        pairs: entries of `pairs.json` that are mappings.
        error_log: its last 20,000 characters, or empty.
        status: "done", "failed", "not finished" or "starting", or another word from the summary.
        problems: what could not be read, one sentence each.
    """

    path: Path
    config: dict[str, dict[str, Any]] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)
    guard: list[dict[str, Any]] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    error_log: str = ""
    status: str = "not finished"
    problems: list[str] = field(default_factory=list)


def read_run(path: Path, *, begun: bool = False) -> RunRecord:
    """Read a run directory.

    Args:
        path: of the directory.
        begun: also take one in which a run has begun and written no configuration yet; its status is "starting".

    Raises:
        RequestError: `path` is not a run directory; the message says what is missing.
    """
    path = user_path(path)
    configured = (path / CONFIG).is_file()
    if not configured and not (begun and (path / LOCK).is_file()):
        raise RequestError(_not_a_run(path))
    problems: list[str] = []
    summary = _read_json(path / SUMMARY, dict, problems)
    answers = [entry for entry in _read_json(path / ANSWERS, list, problems) if isinstance(entry, dict)]
    error_log = _read_text(path / ERROR_LOG, problems)[-20_000:]
    return RunRecord(
        path=path,
        config=_read_config(path / CONFIG, problems) if configured else {},
        environment=_read_json(path / ENVIRONMENT, dict, problems),
        summary=summary,
        metrics=_read_metrics(path / METRICS, problems),
        answers=answers,
        guard=_read_rows(path / GUARD, problems),
        pairs=[
            pair for pair in _listed(_read_json(path / PAIRS, dict, problems).get("pairs")) if isinstance(pair, dict)
        ],
        error_log=error_log,
        status=_status(path, summary, failed=bool(error_log)) if configured else "starting",
        problems=problems,
    )


def _not_a_run(path: Path) -> str:
    name = show_path(path)
    if not path.exists():
        return f"{name} does not exist; {_run_meant(path)}"
    if not path.is_dir():
        if _is_run(path.parent):
            return f"{name} is a file; name the run directory that contains it, {show_path(path.parent)}"
        return f"{name} is a file and no run; {_run_meant(path)}"
    missing = [name for name in (CONFIG, ENVIRONMENT, METRICS) if not (path / name).is_file()]
    runs = sorted(str(config.parent) for config in path.glob(f"*/{CONFIG}"))
    near = f"; runs in it: {', '.join(map(show_path, runs[-3:]))}" if runs else ""
    lacks = " and no ".join(missing)
    return f"{name} is not a run directory, it has no {lacks}; name one that `wishbone train` wrote{near}"


def _is_run(path: Path) -> bool:
    return (path / CONFIG).is_file() and ((path / ENVIRONMENT).is_file() or (path / METRICS).is_file())


def _run_meant(path: Path) -> str:
    """Which run somebody may have meant by a name that is none: one of a similar name, or the latest."""
    places = [*path.parent.glob(f"*/{CONFIG}"), *Path("runs").glob(f"*/{CONFIG}")]
    runs = {
        config.parent.name: config.parent for config in sorted(places, key=os.path.getmtime) if _is_run(config.parent)
    }
    if close := nearest(path.name, runs):
        return f"did you mean {show_path(runs[close])}?"
    latest = f"; the latest one is {show_path(list(runs.values())[-1])}" if runs else ""
    return f"name the run directory that `wishbone train` wrote{latest}"


def _status(path: Path, summary: dict[str, Any], *, failed: bool) -> str:
    """The status of the run; an error log older than the summary belongs to an earlier attempt."""
    written = summary.get("status")
    if isinstance(written, str) and written not in {"running", ""}:
        return written
    if failed and not (summary and (path / ERROR_LOG).stat().st_mtime < (path / SUMMARY).stat().st_mtime):
        return "failed"
    return "not finished"


def _read_text(path: Path, problems: list[str]) -> str:
    """The text of a file, at most `MOST_BYTES` of it; not of a device or a pipe, which may have no end."""
    try:
        if not os.path.lexists(path):
            return ""
        if not stat.S_ISREG(path.stat().st_mode):
            problems.append(f"{path.name} is not a file")
            return ""
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        problems.append(f"{path.name} cannot be read ({error.strerror or type(error).__name__})")
        return ""
    if len(content) > MOST_BYTES:
        problems.append(f"{path.name} is longer than {MOST_BYTES >> 20} MiB; the rest of it is left out")
    return content[:MOST_BYTES].decode("utf-8", errors="replace")


def _read_json(path: Path, kind: type, problems: list[str]) -> Any:
    """The content of a JSON file, or an empty value of type `kind`."""
    text = _read_text(path, problems)
    if not text:
        return kind()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        problems.append(f"{path.name} is not JSON ({error})")
        return kind()
    if not isinstance(value, kind):
        problems.append(f"{path.name} has a {type(value).__name__} instead of a {kind.__name__}")
        return kind()
    return value


def _read_config(path: Path, problems: list[str]) -> dict[str, dict[str, Any]]:
    try:
        value = read_document(_read_text(path, problems)).value
    except RequestError as error:
        problems.append(f"{path.name} cannot be read ({error})")
        return {}
    if not isinstance(value, dict):
        return {}
    return {str(name): section for name, section in value.items() if isinstance(section, dict)}


def _read_metrics(path: Path, problems: list[str]) -> dict[str, list[tuple[float, float]]]:
    """Values by metric and step; a training line with a lower step than the one before replaces the later history."""
    by_step: dict[float, dict[str, float]] = {}
    steps: list[float] = []
    newest, unreadable, cut_off = -math.inf, 0, False
    for text in StringIO(_read_text(path, problems)):
        line = _line(text)
        step = _number(line.get("step"))
        if step is None or not math.isfinite(step):
            cut_off = not text.endswith("\n")
            unreadable += bool(text.strip()) and not cut_off
            continue
        values = {str(name): number for name, value in line.items() if (number := _number(value)) is not None}
        if "loss" in values:
            if step < newest:
                first = bisect_left(steps, step)
                for repeated in steps[first:]:
                    del by_step[repeated]
                del steps[first:]
            newest = step
        if step not in by_step:
            insort(steps, step)
        by_step.setdefault(step, {}).update(values)
    if unreadable:
        problems.append(f"{path.name}: lines that are not JSON, or have no step, were skipped ({unreadable})")
    if cut_off:
        problems.append(f"the last line of {path.name} is cut off: the run is writing it, or was killed while writing")
    metrics: dict[str, list[tuple[float, float]]] = {}
    for step in steps:
        for name, value in by_step[step].items():
            metrics.setdefault(name, []).append((step, value))
    return metrics


def _read_rows(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The lines of a file that are mappings; there need not be one."""
    return [row for row in map(_line, StringIO(_read_text(path, problems))) if row]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _line(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    """The value as a float: NaN for null, infinite beyond `LARGEST`, None if it is not a number."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if abs(value) > LARGEST:
        return math.inf if value > 0 else -math.inf
    return float(value)
