"""The runs of a board: directories named on the command line, and those inside of them, read again where they changed.

A run directory is written while it is read. What decides whether it is read again are names, sizes and times of its
files, so that an unchanged run of thousands of points costs a few calls of `stat`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from wishbone.config.run_directory import LOCK
from wishbone.errors import RequestError
from wishbone.report.run_directory import (
    ANSWERS,
    CONFIG,
    ENVIRONMENT,
    ERROR_LOG,
    GUARD,
    METRICS,
    PAIRS,
    SUMMARY,
    RunRecord,
    read_run,
)

FILES = (CONFIG, ENVIRONMENT, METRICS, SUMMARY, ANSWERS, ERROR_LOG, GUARD, PAIRS, LOCK)
BEGUN = (CONFIG, LOCK)
"""Files of which a run has one from its first second on."""
MOST_RUNS = 24
"""Runs that one board shows; of more, those that changed last."""

Signature = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Shown:
    """One run of a board.

    Attributes:
        id: a word of letters and digits that stays the same while the directory has its name.
        name: for people; with a part of the path where two runs have the same name.
        record: what its files say.
    """

    id: str
    name: str
    record: RunRecord


class Runs:
    """Reads the runs of some directories; may be asked from several threads.

    Args:
        places: run directories, or directories that hold some.
    """

    def __init__(self, places: Sequence[Path]) -> None:
        self._places = [place.absolute() for place in places]
        self._read: dict[Path, tuple[Signature, RunRecord]] = {}
        self._lock = Lock()

    def now(self) -> list[Shown]:
        """Return the runs as they are now, the first named first, then by name."""
        with self._lock:
            found = self._directories()
            records = {path: record for path in found if (record := self._record(path)) is not None}
            self._read = {path: kept for path, kept in self._read.items() if path in records}
        names = [path.name for path in records]
        return [
            Shown(
                "r" + hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:12],
                path.name if names.count(path.name) == 1 else f"{path.parent.name}/{path.name}",
                record,
            )
            for path, record in records.items()
        ]

    def _directories(self) -> list[Path]:
        found: dict[Path, None] = {}
        for place in self._places:
            if any((place / name).is_file() for name in BEGUN):
                found[place] = None
                continue
            try:
                inside = {path.parent for name in BEGUN for path in place.glob(f"*/{name}") if path.is_file()}
            except OSError:
                continue
            newest = sorted(inside, key=_changed, reverse=True)[:MOST_RUNS]
            found |= dict.fromkeys(sorted(newest))  # by name, so that live runs keep their places and colours
        return list(found)[:MOST_RUNS]

    def _record(self, path: Path) -> RunRecord | None:
        signature = tuple(entry for name in FILES if (entry := _entry(path, name)))
        known = self._read.get(path)
        if known is not None and known[0] == signature:
            return known[1]
        try:
            record = read_run(path, begun=True)
        except RequestError:  # deleted meanwhile
            return None
        self._read[path] = (signature, record)
        return record


def _entry(path: Path, name: str) -> tuple[str, int, int] | None:
    try:
        found = (path / name).stat()
    except OSError:
        return None
    return name, found.st_size, found.st_mtime_ns


def _changed(path: Path) -> int:
    try:
        return max((path / name).stat().st_mtime_ns for name in (*BEGUN, METRICS) if (path / name).exists())
    except (OSError, ValueError):
        return 0
