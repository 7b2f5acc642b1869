"""Lines of the log that are left out: what the first of several processes says, too, and one of another library.

Processes of one run decide alike, so the first speaks for all. What concerns one process alone, such as memory that
ran out there, is logged by that process, with its number.

At its import on a processor with AVX512-BF16, bitsandbytes warns that it found no kernel of another package for 4-bit
layers in evaluation mode. Wishbone keeps such layers as they are (`model/quantization.py`), so the package would change
nothing, and the line reads like a failure.
"""

from __future__ import annotations

import logging
import os

OF_ONE_PROCESS = ("wishbone.engine.oom_retry", "wishbone.engine.profiling", "wishbone.reference.store")
"""Loggers whose lines concern one process."""

LOGGER = "bitsandbytes.backends.cpu.ops"
BEGINS = "Failed to load CPU gemm_4bit_forward"


def let_first_process_speak() -> None:
    """In any other process of a run leave out what the first one says, too; a level that was set before stays."""
    own = logging.getLogger("wishbone")
    if int(os.environ.get("RANK") or 0) == 0 or own.level:
        return
    own.setLevel(logging.ERROR)
    for name in OF_ONE_PROCESS:
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).addFilter(_name_process)


def _name_process(record: logging.LogRecord) -> bool:
    record.msg = f"process {os.environ.get('RANK')}: {record.msg}"
    return True


def hide_kernel_advice() -> None:
    """Leave that one line out; bitsandbytes' other lines stay. A second call changes nothing."""
    logging.getLogger(LOGGER).addFilter(_says_something_else)


def _says_something_else(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(BEGINS)
