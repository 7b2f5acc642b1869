"""The file of results: rows of measurements, and for each call where, when and how it measured.

    {"calls": [{"command", "date", "commit", "hardware", "python"}],
     "results": [{"kind", "size", "system", "case", "call", "status", ...}]}

A row names the call that measured it. A later row replaces an earlier one of the same kind, size, system and case, so a
file can be continued on another day or another machine, and says so.
"""

from __future__ import annotations

import json
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.text import Text

Row = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks" / "results"
KEY = ("kind", "size", "system", "case")
LONGEST_FAILURE = 120
SHOWN = (
    "pairs_per_s", "tokens", "peak_gib", "first_step_seconds", "heldout_accuracy", "margin", "bf16_tflops",
    "fp8_tflops", "token_mean_absolute", "largest_error",
)  # fmt: skip
"""Figures that a row's line shows while a call runs."""


class Results:
    """Rows and calls, in the order in which they were made."""

    def __init__(self, calls: Iterable[Row] = (), rows: Iterable[Row] = ()) -> None:
        self.calls = list(calls)
        self.rows = list(rows)

    @classmethod
    def read(cls, *paths: Path) -> Results:
        """Read files; of rows with the same key the last one counts.

        Raises:
            SystemExit: a file does not hold results.
        """
        together = cls()
        for path in paths:
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                calls, rows = content["calls"], content["results"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise SystemExit(f"{path} cannot be read as results of these benchmarks ({error!r})") from error
            first = len(together.calls)
            together.calls += calls
            for row in rows:
                together.add({**row, "call": first + row["call"]})
        return together

    def begin_call(self, commit: str | None) -> None:
        """Note the call that measures the rows added from now on."""
        self.calls.append(this_call(commit))

    def add(self, row: Row) -> None:
        """Add a row, in place of one with its key."""
        row = {"call": len(self.calls) - 1, **row}
        self.rows = [other for other in self.rows if _key(other) != _key(row)]
        self.rows.append(row)

    def has(self, asked: Mapping[str, Any]) -> bool:
        """Whether there is a row of this key."""
        return any(_key(row) == _key(asked) for row in self.rows)

    def of(self, kind: str) -> list[Row]:
        """Return the rows of one kind."""
        return [row for row in self.rows if row["kind"] == kind]

    def find(self, kind: str, size: str | None, system: str, case: str) -> Row | None:
        """Return a row that was measured, or None."""
        key = (kind, size, system, case)
        return next((row for row in self.rows if _key(row) == key and row["status"] == "ok"), None)

    def write(self, path: Path) -> None:
        """Write the file, all or nothing."""
        write_json(path, {"calls": self.calls, "results": self.rows})


def this_call(commit: str | None = None) -> Row:
    """Return what describes this call: command, date, commit, hardware and Python.

    Args:
        commit: the commit of this code, where git cannot tell.
    """
    return {
        "command": " ".join([sys.argv[0], *map(_shown, sys.argv[1:])]),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "commit": commit or current_commit(),
        "hardware": hardware(),
        "python": platform.python_version(),
    }


def write_json(path: Path, content: Any) -> None:
    """Write JSON, all or nothing, with short lists on one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(_short_lists_on_one_line(json.dumps(content, indent=1)) + "\n", encoding="utf-8")
    partial.replace(path)


def failure(row: Row) -> str:
    """Return why a row has no result, in one line."""
    text = f"{row.get('reason', 'failed')} (at: {row.get('phase', 'the start')})"
    return text if len(text) <= LONGEST_FAILURE else text[: LONGEST_FAILURE - 2] + " …"


def name_of(key: Row) -> str:
    """Return what identifies a row, in one line."""
    return " ".join(filter(None, (key[part] for part in KEY)))


def line_of(row: Row) -> Text:
    """Return a row in one line, for whoever watches."""
    found = ", ".join(f"{key} {row[key]}" for key in SHOWN if key in row)
    if row["status"] != "ok":
        found = ", ".join(filter(None, [f"FAILED, {failure(row)}", found]))
    return Text(f"{name_of(row)}: {found} ({row.get('seconds', 0):.0f} s)")


def _short_lists_on_one_line(text: str) -> str:
    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda found: "[" + re.sub(r",\s+", ", ", found[1]) + "]", text)


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in KEY)


def _shown(argument: str) -> str:
    """Show only the last part of a path: results are published, and where files lie says nothing."""
    name = Path(argument).name if "/" in argument else argument
    return shlex.quote(name)


def current_commit(root: Path = ROOT) -> str | None:
    """Return the commit of a checkout, marked where files differ from it; None where `root` is not the top of one."""

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    top = git("rev-parse", "--show-toplevel")
    commit = git("rev-parse", "HEAD") if top and Path(top) == root.resolve() else None
    return f"{commit} with changes" if commit and git("status", "--porcelain", "--untracked-files=no") else commit


def hardware() -> Row:
    """Return what this machine has, without touching its GPUs."""
    from wishbone.planning.hardware import read_cpu, read_memory

    cpu = read_cpu()
    found: Row = {"cpu": cpu.model, "cores": cpu.cores, "memory_gib": round(read_memory().total / 2**30, 1), "gpus": []}
    try:
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return found
    if answer.returncode == 0:
        names = ("name", "memory", "driver")
        lines = answer.stdout.strip().splitlines()
        found["gpus"] = [dict(zip(names, map(str.strip, line.split(",")), strict=True)) for line in lines]
    return found
