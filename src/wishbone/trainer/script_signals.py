"""Signals in a script: training saves a checkpoint before Ctrl-C, SIGTERM or SIGHUP take effect.

    trainer.train()      at the first signal the step under way ends and a checkpoint is saved; then the same signal is
                         raised again: KeyboardInterrupt for Ctrl-C, the end of the process for the others
    the second signal    does at once what it would have done

Only signals that do what Python does by default are caught, in the main thread, while `train` runs. Handlers of the
script, of a launcher or of `wishbone train` stay what they are.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import SaveStrategy

from wishbone.trainer.stop_after_step import StopAfterStep

_DEFAULTS = {"SIGINT": signal.default_int_handler, "SIGTERM": signal.SIG_DFL, "SIGHUP": signal.SIG_DFL}
SAME_SIGNAL = 0.3
"""Seconds in which further signals count as the first one: a terminal sends to each process of a group."""
SAME_SIGNAL_OF_TORCHRUN = 3.0
"""The same under torchrun, which sends its own signal to each process some time after the terminal did."""

logger = logging.getLogger(__name__)


class ScriptSignals:
    """Notes the first signal.

    Attributes:
        received: it, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._began = 0.0
        self._same = SAME_SIGNAL_OF_TORCHRUN if "TORCHELASTIC_RUN_ID" in os.environ else SAME_SIGNAL
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> int:
        """Number of the signal for which training is to save and return, or 0."""
        return self.received or 0

    def catch(self) -> bool:
        """Install handlers for signals that have no other handler, and return whether there are any."""
        for name, default in _DEFAULTS.items():
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) == default:
                self._before[number] = signal.signal(number, self._note)
        return bool(self._before)

    def release(self) -> None:
        """Restore the handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._began = signal.Signals(number), now
            logger.warning(
                "%s: the step under way ends, then a checkpoint is saved; a second signal ends training at once.",
                self.received.name,
            )
        elif now - self._began > self._same:
            self.release()
            signal.raise_signal(number)


@contextmanager
def saved_before_signals(trainer: Trainer) -> Iterator[None]:
    """Context of `train`: a signal ends it after a checkpoint and then does what it would have done.

    Nothing is caught where `save_strategy` is "no".
    """
    signals = ScriptSignals()
    saves = trainer.args.save_strategy != SaveStrategy.NO
    if not saves or threading.current_thread() is not threading.main_thread() or not signals.catch():
        yield
        return
    stopping = StopAfterStep(signals)
    trainer.add_callback(stopping)
    try:
        yield
    finally:
        signals.release()
        trainer.remove_callback(stopping)
    if signals.received is not None:
        signal.raise_signal(signals.received)
