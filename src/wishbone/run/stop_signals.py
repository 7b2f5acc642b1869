"""Signals that ask a run to stop: Ctrl-C (SIGINT), SIGTERM of schedulers, SIGHUP of a terminal that closes.

    while nothing is worth saving   `Stopped` is raised at once
    while training                  the step under way ends, a checkpoint is saved, then `Stopped` is raised
    at the second signal            the process ends at once

Python runs signal handlers between two instructions of the main thread, which may be inside a kernel or a file system
for minutes. So the number of each signal also goes through a pipe to a thread, which answers at once and keeps the
time-out. A signal that was ignored when the process began, as under `nohup`, stays ignored.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self
from weakref import WeakSet

CAUGHT = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
SAVE_WITHIN = 300.0
"""Seconds in which the step under way and a checkpoint must be done."""
UNWIND_WITHIN = 5.0
"""Seconds in which the main thread must leave what it does while nothing is worth saving."""
SAME_SIGNAL = 0.3
"""Seconds in which further signals count as the first one: launchers pass on what the terminal sent already."""
SAME_SIGNAL_OF_TORCHRUN = 3.0
"""The same under torchrun, which sends its own signal to each process some time after the terminal did."""


class Stopped(KeyboardInterrupt):
    """A signal asked the run to stop.

    Attributes:
        signal: which one.
        status: exit status of the process, 128 + the signal's number.
    """

    def __init__(self, signal: signal.Signals) -> None:
        super().__init__(signal.name)
        self.signal = signal
        self.status = 128 + signal


class StopSignals:
    """Context in which the signals are caught; of the main thread.

    Args:
        say: prints one line.
        left: says what a run that ends now leaves behind, in one sentence or several lines.

    Attributes:
        received: the first signal, or None.
    """

    def __init__(self, say: Callable[[str], None], left: Callable[[], str]) -> None:
        self.received: signal.Signals | None = None
        self._say = say
        self._left = left
        self._saves = False
        self._raised = False
        self._same = SAME_SIGNAL_OF_TORCHRUN if "TORCHELASTIC_RUN_ID" in os.environ else SAME_SIGNAL
        self._handlers: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        for number in CAUGHT:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._in_main_thread)
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        _active.add(self)
        threading.Thread(target=self._watch, name="stop-signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        _active.discard(self)
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._writer.close()

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Context of training, which sees to it that a checkpoint is saved when `received` is set and then returns.

        Raises:
            Stopped: when the block ends and there was a signal.
        """
        self._saves = True
        try:
            yield
        finally:
            self._saves = False
        if self.received is not None:
            raise Stopped(self.received)

    @property
    def asked(self) -> int:
        """Number of the signal for which training is to save and return, or 0."""
        return self.received or 0 if self._saves else 0

    def _in_main_thread(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number)
        if not self._saves and not self._raised:
            self._raised = True
            raise Stopped(self.received)

    def _watch(self) -> None:
        """Answer signals until the context ends; in a thread of its own."""
        first: signal.Signals | None = None
        began = deadline = 0.0
        with self._reader:
            while True:
                self._reader.settimeout(None if first is None else max(deadline - time.monotonic(), 0.001))
                try:
                    numbers = self._reader.recv(64)
                except TimeoutError:
                    self._end(first, f"nothing more was saved within {deadline - began:.0f} seconds")
                if not numbers:
                    return
                for number in (signal.Signals(value) for value in numbers if value in CAUGHT):
                    now = time.monotonic()
                    if first is None:
                        first, began = number, now
                        self.received = self.received or number
                        deadline = now + (SAVE_WITHIN if self._saves else UNWIND_WITHIN)
                        if self._saves:
                            self._announce(number)
                    elif now - began > self._same:
                        self._end(number, "ended at once, at the second signal")

    def _announce(self, number: signal.Signals) -> None:
        self._aside(
            f"{number.name}: the step under way ends, then a checkpoint is saved, within {SAVE_WITHIN:.0f} seconds; "
            "a second signal ends the run at once"
        )

    def _end(self, number: signal.Signals | None, why: str) -> None:
        """End the process from this thread, whatever the main thread does."""
        self._aside(f"{why}; {self._left()}")
        os._exit(128 + (number or 0))

    def _aside(self, text: str) -> None:
        """Print without waiting for a terminal that takes nothing."""
        speaker = threading.Thread(target=self._say, args=(text,), daemon=True)
        speaker.start()
        speaker.join(1)


_active: WeakSet[StopSignals] = WeakSet()


def _forget_in_child() -> None:
    """A forked worker answers signals as usual; its signals must not reach the parent's thread."""
    for signals in list(_active):
        signal.set_wakeup_fd(-1)
        for number in signals._handlers:
            signal.signal(number, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
