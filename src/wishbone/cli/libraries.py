"""What other libraries may print on the terminal of a command.

Their progress bars are shown on a terminal, not in a pipe. Their warnings about future versions are hidden, because
they are meant for developers. What Wishbone itself logs is printed as notes. Several processes would print each note
several times, so only the first one prints notes. The others print errors alone.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from contextlib import redirect_stdout

from wishbone.cli.console import say
from wishbone.process_logs import let_first_process_speak
from wishbone.process_threads import let_waiting_threads_sleep
from wishbone.run.processes import is_first_process


class _Notes(logging.Handler):
    """Prints log records of Wishbone as notes on standard error, each text once a command."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def begin(self) -> None:
        """Forget what an earlier command of this process has said."""
        self._said.clear()

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        text = record.getMessage()
        if text in self._said:
            return
        self._said.add(text)
        style = "bold yellow" if record.levelno >= logging.WARNING else "bold"
        say(text, marker="note: ", style=style, error=True)


def keep_bars_out_of_pipes() -> None:
    """Turn progress bars off outside of terminals; call it before tqdm is imported, which reads the setting once."""
    if not (sys.stderr.isatty() and is_first_process()):
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars that transformers draws without asking, as for GGUF files


def settle_libraries() -> None:
    """Make the settings of the libraries that commands use; call it before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    let_waiting_threads_sleep()
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it recommends a package that Wishbone does not use
    if os.environ.get("WANDB_MODE") == "offline":  # transformers prints that it is, at its import
        with redirect_stdout(sys.stderr):
            importlib.import_module("transformers.integrations.integration_utils")
    keep_bars_out_of_pipes()
    own = logging.getLogger("wishbone")
    if is_first_process():
        own.setLevel(logging.INFO)
    let_first_process_speak()
    own.propagate = False
    notes = [handler for handler in own.handlers if isinstance(handler, _Notes)]
    for handler in notes:
        handler.begin()
    if not own.handlers:
        own.addHandler(_Notes())
