"""The trackers of a run, whose failures never stop it.

transformers has a callback for each tracker. One of them may fail at any time: its package is broken, its server is
away, its account is not there, its disk is full. Then one line says so and the run continues without it. Standard
output belongs to the command, so what a tracker prints there goes to standard error.

transformers ends a tracker when training ends. Here it ends with the run, because the last evaluation and the answers
come after training.
"""

from __future__ import annotations

import importlib
import io
import logging
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import datetime
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from wishbone.config.document import show_path
from wishbone.errors import one_line

FOLDER = "tensorboard"
"""Where TensorBoard's files lie in a run directory."""
PROJECT = "wishbone"
"""Project of trackio."""
TABLES = ("trackio", "wandb")
"""Trackers with the same interface for tables."""
_STAMPED = re.compile(r"-\d{8}-\d{6}(-\d+)?$")

logger = logging.getLogger(__name__)

Row = Mapping[str, str]


class Tracker(TrainerCallback):  # type: ignore[misc]
    """Hands the events of a run to a tracker's callback until that fails.

    Args:
        name: of the tracker in `output.report_to`.
        make: returns transformers' callback.
        where: how to look at what it has, which is said once, and what it prints itself is left out; empty: it says so.

    Attributes:
        failed: whether it failed; it is asked nothing more then.
    """

    def __init__(self, name: str, make: Callable[[], TrainerCallback], where: str = "") -> None:
        self.name, self.failed, self._where, self._told = name, False, where, False
        self._last: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._callback = self._attempt(make)

    def _attempt(self, call: Callable[[], Any]) -> Any:
        """What a call to the tracker returns; None, with one line, where it fails."""
        if self.failed:
            return None
        try:
            with redirect_stdout(io.StringIO() if self._where else sys.stderr):
                return call()
        except Exception as error:  # noqa: BLE001 (code of others, which may raise anything)
            self.failed = True
            said = one_line(error) or "no reason was given"
            logger.warning("%s failed (%s: %s); the run continues without it.", self.name, type(error).__name__, said)
            return None

    def _forward(self, event: str, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        self._last = args, given
        self._attempt(lambda: getattr(self._callback, event)(*args, **given))

    def on_init_end(self, *args: Any, **given: Any) -> None:
        """Hand over the event."""
        self._forward("on_init_end", args, given)

    def on_train_begin(self, *args: Any, **given: Any) -> None:
        """Hand over the event."""
        self._forward("on_train_begin", args, given)

    def on_epoch_end(self, *args: Any, **given: Any) -> None:
        """Hand over the event."""
        self._forward("on_epoch_end", args, given)

    def on_save(self, *args: Any, **given: Any) -> None:
        """Hand over the event."""
        self._forward("on_save", args, given)

    def on_log(self, *args: Any, **given: Any) -> None:
        """Hand over metrics, and say once where they can be looked at."""
        self._forward("on_log", args, given)
        if self._where and not (self._told or self.failed):
            logger.info("%s has the curves of this run: %s", self.name, self._where)
            self._told = True

    def end(self) -> None:
        """End the tracker with the run; a second call does nothing."""
        if self._last is None or self.failed:
            return
        (args, given), self._last = self._last, None
        self._attempt(lambda: self._callback.on_train_end(*args, **given))
        if self.name == "wandb":  # which transformers leaves open
            self._attempt(lambda: importlib.import_module("wandb").finish())

    def tell(self, title: str, rows: Sequence[Row], step: int) -> None:
        """Hand over texts: a table, or TensorBoard's Markdown; nothing to trackers that have no place for them.

        Args:
            title: of the table.
            rows: its rows, a text by column.
            step: of the run.
        """
        if self.name in TABLES:
            self._attempt(lambda: _log_table(self.name, title, rows, step))
        elif self.name == "tensorboard":
            self._attempt(lambda: _write_texts(self._callback, title, rows, step))


def _log_table(tracker: str, title: str, rows: Sequence[Row], step: int) -> None:
    """Log a table beside the metrics of its step, which trackers count in logs and not in steps of the run."""
    module = importlib.import_module(tracker)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = module.Table(columns=columns, data=[[row.get(key, "") for key in columns] for row in rows])
    module.log({title: table, "train/global_step": step})


def _write_texts(callback: TensorBoardCallback, title: str, rows: Sequence[Row], step: int) -> None:
    """Texts for TensorBoard, whose panel reads Markdown: blocks of code, in which nothing is markup."""
    if callback.tb_writer is None:  # before its first log
        return
    blocks = [f"{key}\n\n{_as_code(text)}" for row in rows for key, text in row.items()]
    callback.tb_writer.add_text(title, "\n\n".join(blocks), step)
    callback.tb_writer.flush()


def _as_code(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])


@contextmanager
def open_trackers(names: Sequence[str], run_dir: Path) -> Iterator[list[Tracker]]:
    """Context with the trackers of a run, which end with it.

    Args:
        names: as in `output.report_to`, all installed.
        run_dir: of the run.
    """
    found = [_tracker(name, run_dir) for name in names]
    try:
        yield found
    finally:
        for tracker in found:
            tracker.end()


def _tracker(name: str, run_dir: Path) -> Tracker:
    if name == "tensorboard":
        return Tracker(name, lambda: _tensorboard(run_dir), f"tensorboard --logdir {show_path(run_dir / FOLDER)}")
    where = f"trackio show --project {shlex.quote(PROJECT)}" if name == "trackio" else ""
    return Tracker(name, lambda: get_reporting_integration_callbacks([name])[0](), where)


def _tensorboard(run_dir: Path) -> TensorBoardCallback:
    """Return transformers' callback, which writes into the run directory."""
    callback = TensorBoardCallback()
    callback.logging_dir = str(run_dir / FOLDER)
    return callback


def tracked_name(run_dir: Path) -> str:
    """Return a name for a run in its trackers: that of its directory, which a later run may have, and when it began."""
    name = run_dir.name
    return name if _STAMPED.search(name) else f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
