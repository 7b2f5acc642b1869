"""`guard.jsonl`: what the guard measured and said, one JSON object a line, written at once.

    {"kind": "measurement", "step": 40, "chosen_drift": -0.03, ..., "signs": [], "seconds": 1.9}
    {"kind": "answers", "step": 40, "prompts": ["..."], "answers": ["..."]}
    {"kind": "alarm", "step": 60, "since": 50, "sign": "displacement", "severity": "problem", "title": ...,
     "seen": ..., "advice": ..., "action": ...}
    {"kind": "note", "step": 60, "text": ...}

A resumed run repeats steps; rows after its checkpoint are removed when it begins.
"""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from wishbone.data.json_text import parse_json
from wishbone.strict_json import without_nan

FILE = "guard.jsonl"

logger = logging.getLogger(__name__)


class Record:
    """Appends rows to the file and keeps the alarms.

    Args:
        folder: where the file is written.
        writes: whether this process writes; the others only keep.
    """

    def __init__(self, folder: Path, *, writes: bool) -> None:
        self.folder, self._writes = folder, writes
        self.rows: list[dict[str, Any]] = []

    def begin(self, step: int) -> None:
        """Go on after `step` optimizer steps: keep what the file has up to there."""
        kept = []
        if step > 0 and (self.folder / FILE).is_file():
            rows = map(_row, (self.folder / FILE).read_bytes().splitlines())
            kept = [row for row in rows if row is not None and row["step"] <= step]
        self.rows = kept
        if self._writes and (self.folder / FILE).is_file():
            self._replace(kept)

    def add(self, kind: str, step: int, **values: Any) -> None:
        """Append a row."""
        row = {"kind": kind, "step": step, **values}
        self.rows.append(row)
        if self._writes:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with (self.folder / FILE).open("a", encoding="utf-8") as file:
                    file.write(_line(row))
            except OSError as error:  # a full disk stops no run; summary.json has the alarms too
                logger.warning("%s: a row was lost (%s).", FILE, error.strerror)

    def _replace(self, rows: list[dict[str, Any]]) -> None:
        partial = self.folder / f".{FILE}.partial"
        try:
            partial.write_text("".join(map(_line, rows)), encoding="utf-8")
            partial.replace(self.folder / FILE)
        except OSError as error:
            logger.warning("%s: rows of steps that come again stay in it (%s).", FILE, error.strerror)
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Return the rows of a kind, in order."""
        return [row for row in self.rows if row["kind"] == kind]


def _line(row: dict[str, Any]) -> str:
    return json.dumps(without_nan(row), ensure_ascii=False, allow_nan=False) + "\n"


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line)
    except ValueError:
        return None
    whole = isinstance(row, dict) and isinstance(row.get("step"), int) and isinstance(row.get("kind"), str)
    return row if whole else None
