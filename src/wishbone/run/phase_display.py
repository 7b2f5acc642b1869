"""Phases of a run on a terminal: a bar for the current one, a line for each finished one.

A phase whose parts are counted has a bar and the time left at its present pace. One whose parts are not (imports,
loading a model) has the time that it took on this machine the last time; the first time the bar only moves. Elsewhere
than on a terminal each phase that took a second is one line, and of training one line after every tenth. Where nothing
was told for half a minute, a line says how far the phase is.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Column
from rich.text import Text

from wishbone.cache import cache_root
from wishbone.errors import counted
from wishbone.phases import Phase, listening

TOLD_FROM = 1.0
"""Seconds from which a phase is printed without a terminal."""
SHOWN_FROM = 0.1
NAME_WIDTH = 11
WIDE, WIDE_BAR, NARROW_BAR = 110, 24, 12
LONGEST_FILE = 65_536
MOST_KEPT = 200
TOLD_EVERY = 30.0
"""Seconds without a line after which one says how far a phase is, elsewhere than on a terminal."""
REPEATED = ("evaluation", "saving")
"""Phases within training that come again and again; their end is no news."""
ROW_UNIT = "layer"
"""Parts of the passes over a long row (`policy/layer_progress.py`), of which there are many."""


class PhaseDisplay:
    """Shows phases on a console; use as a listener (`wishbone.phases.listening`) and close it at the end.

    Args:
        console: where they go.
        memory: file with the seconds that phases took; None: `phases.json` in the user's cache.
    """

    def __init__(self, console: Console, memory: Path | None = None) -> None:
        self._console = console
        self._memory = LastTimes(cache_root() / "phases.json" if memory is None else memory)
        self._open: list[tuple[Phase, TaskID | None]] = []
        self._told_tenth = 0
        self._told_at = time.monotonic()
        self._progress = (
            Progress(
                TextColumn("{task.description}", style="bold", table_column=Column(no_wrap=True, min_width=NAME_WIDTH)),
                _Bar(NARROW_BAR if console.width < WIDE else WIDE_BAR),
                _Parts(table_column=Column(no_wrap=True, min_width=9)),
                _Left(table_column=Column(no_wrap=True, min_width=16)),
                TextColumn(
                    "{task.fields[figures]}", style="dim", table_column=Column(no_wrap=True, overflow="ellipsis")
                ),
                console=console,
                transient=True,
                refresh_per_second=8,
            )
            if console.is_terminal
            else None
        )

    def began(self, phase: Phase) -> None:
        """Show a phase instead of the one that contains it."""
        if self._progress is None or phase.own_bars:
            self._told_tenth = _tenth(phase) if phase.unit == "step" else self._told_tenth
            self._open.append((phase, None))
            return
        self._hide()
        task = self._progress.add_task(
            phase.name,
            total=phase.total,
            completed=phase.done,
            figures=phase.note,
            expected=self._memory.of(phase),
            unit=phase.unit,
        )
        self._open.append((phase, task))
        self._progress.start()

    def _hide(self) -> None:
        for _, task in self._open:
            if self._progress is not None and task is not None:
                self._progress.update(task, visible=False)

    def moved(self, phase: Phase) -> None:
        """Move its bar; without a terminal print a line for every tenth of training."""
        task = next((task for open_phase, task in self._open if open_phase is phase), None)
        if self._progress is not None and task is not None:
            self._progress.update(task, completed=phase.done, figures=phase.figures or phase.note)
        elif self._progress is None and phase.unit == "step" and _tenth(phase) > self._told_tenth:
            self._told_tenth = _tenth(phase)
            self._tell(f"step {phase.done}/{phase.total}  {phase.figures}".rstrip())
        elif self._progress is None and time.monotonic() - self._told_at >= TOLD_EVERY:
            self._tell(", ".join(_so_far(one) for one, _ in self._open))

    def _tell(self, line: str | Text) -> None:
        self._told_at = time.monotonic()
        self._console.print(line, highlight=False, soft_wrap=True)

    def ended(self, phase: Phase) -> None:
        """Say how long it took, and show the one that it lay in again."""
        task = next((task for open_phase, task in self._open if open_phase is phase), None)
        self._open = [(other, its) for other, its in self._open if other is not phase]
        inner = any(other.unit == "step" for other, _ in self._open)
        self._memory.keep(phase)
        if self._progress is not None and task is not None:
            self._progress.refresh()
            self._progress.remove_task(task)
            if self._open and self._open[-1][1] is not None:
                self._progress.update(self._open[-1][1], visible=True)
            else:
                self._progress.stop()
        told = SHOWN_FROM if self._progress is not None else TOLD_FROM
        if phase.seconds >= told and phase.unit != ROW_UNIT and not (inner and phase.name in REPEATED):
            self._tell(_line(phase))

    def close(self) -> None:
        """Take the bar away and write down how long phases took."""
        if self._progress is not None:
            self._progress.stop()
        self._memory.write()


@contextmanager
def phases_shown(console: Console) -> Iterator[None]:
    """Context in which phases are shown on a console."""
    display = PhaseDisplay(console)
    try:
        with listening(display):
            yield
    finally:
        display.close()


def _so_far(phase: Phase) -> str:
    parts = "" if phase.total is None else f" {phase.done}/{counted(phase.total, phase.unit or 'part')}"
    return f"{phase.name}{parts}" + (f" ({phase.note})" if phase.note else "")


def _line(phase: Phase) -> Text:
    parts = counted(phase.done, phase.unit) if phase.unit and phase.done else ""
    line = Text(f"{phase.name:<{NAME_WIDTH}}", "bold") + Text(f" {duration(phase.seconds):>8}")
    return line + Text(f"  {', '.join(part for part in (phase.note, parts) if part)}".rstrip(), "dim")


def duration(seconds: float) -> str:
    """A time as people say it: `0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _tenth(phase: Phase) -> int:
    return 10 * phase.done // max(phase.total or 1, 1)


class _Bar(ProgressColumn):
    """Parts done, or seconds of those that it took the last time; without either a bar that only moves."""

    def __init__(self, width: int) -> None:
        super().__init__(table_column=Column(no_wrap=True, min_width=width))
        self._width = width

    def render(self, task: Task) -> ProgressBar:
        expected = task.fields["expected"]
        if task.total is None and expected:
            return ProgressBar(total=expected, completed=min(task.elapsed or 0.0, 0.97 * expected), width=self._width)
        return ProgressBar(
            total=task.total,
            completed=task.completed,
            width=self._width,
            pulse=task.total is None,
            animation_time=task.get_time(),
        )


class _Parts(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.total is None else f"{task.completed:,.0f}/{task.total:,.0f}", "green")


class _Left(ProgressColumn):
    """Time left where it is known, otherwise the time since the beginning."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        elapsed, expected = task.elapsed or 0.0, task.fields["expected"]
        left = task.time_remaining if task.total is not None else max(expected - elapsed, 0.0) if expected else None
        if left is None and expected and task.total is not None:
            left = max(expected - elapsed, 0.0)
        return Text(duration(elapsed) if left is None else f"{duration(left)} left", "cyan")


class LastTimes:
    """Seconds that phases took on this machine the last time, by name and note.

    The file is an aid: one that cannot be read or written is done without.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seconds: dict[str, float] = {}
        with suppress(OSError, ValueError, RecursionError):
            found = json.loads(path.read_bytes()[:LONGEST_FILE])
            if isinstance(found, dict):
                self._seconds = {
                    name: float(value)
                    for name, value in found.items()
                    if isinstance(value, int | float) and 0 < value < 1e6
                }
        self._changed = False

    def of(self, phase: Phase) -> float | None:
        """Return the seconds of such a phase, or None if they are not known."""
        return self._seconds.get(_key(phase))

    def keep(self, phase: Phase) -> None:
        """Remember a phase whose parts are not counted."""
        if phase.total is None:
            self._seconds.pop(_key(phase), None)
            self._seconds[_key(phase)] = max(round(phase.seconds, 2), 0.01)
            self._changed = True

    def write(self) -> None:
        """Rewrite the file, the newest phases in it."""
        if not self._changed:
            return
        kept = dict(list(self._seconds.items())[-MOST_KEPT:])
        partial = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(kept), encoding="ascii")
            partial.replace(self._path)


def _key(phase: Phase) -> str:
    return f"{phase.name} {phase.note}".strip()
