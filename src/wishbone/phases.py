"""Named phases of a run, and who listens to them.

What takes time says so: `with phase("tokenizing", total=50_000)` around the work, `Phase.to` from within it. Phases may
lie in each other. Nobody listens unless a command asks to, and then nothing costs more than a call.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol


@dataclass
class Phase:
    """One phase that is under way.

    Attributes:
        name: a word or two, such as `tokenizing`.
        total: parts of the work, or None where they are not counted.
        unit: what a part is, in the singular; empty where the name says it.
        note: what is worked on, in a few words.
        own_bars: whether another library shows bars of its own meanwhile, as the hub does for a download.
        done: parts that are done.
        figures: what is known of the last part, such as its loss.
        began: `time.monotonic()` at its beginning.
    """

    name: str
    total: int | None = None
    unit: str = ""
    note: str = ""
    own_bars: bool = False
    done: int = 0
    figures: str = ""
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds since its beginning."""
        return time.monotonic() - self.began

    def to(self, done: int, figures: str | None = None) -> None:
        """Say how many parts are done now."""
        self.done = done
        self.figures = self.figures if figures is None else figures
        for listener in _listeners:
            listener.moved(self)

    def more(self, parts: int = 1) -> None:
        """Say that so many more parts are done."""
        self.to(self.done + parts)


class Listener(Protocol):
    """The listeners."""

    def began(self, phase: Phase) -> None:
        """A phase begins."""

    def moved(self, phase: Phase) -> None:
        """Parts of a phase are done."""

    def ended(self, phase: Phase) -> None:
        """A phase is over, done or not."""


_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell a listener of the phases of this process for as long as the context lasts."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def heard() -> bool:
    """Whether somebody listens."""
    return bool(_listeners)


def begin(
    name: str, total: int | None = None, unit: str = "", note: str = "", *, own_bars: bool = False, done: int = 0
) -> Phase:
    """Begin a phase that `end` ends, where a context manager does not fit the code."""
    phase = Phase(name, total, unit, note, own_bars, done)
    for listener in _listeners:
        listener.began(phase)
    return phase


def end(phase: Phase) -> None:
    """End a phase."""
    for listener in _listeners:
        listener.ended(phase)


@contextmanager
def phase(
    name: str, total: int | None = None, unit: str = "", note: str = "", *, own_bars: bool = False
) -> Iterator[Phase]:
    """Context of a phase; arguments as the attributes of `Phase`."""
    own = begin(name, total, unit, note, own_bars=own_bars)
    try:
        yield own
    finally:
        end(own)
