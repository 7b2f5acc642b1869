"""A line of another library that recommends what Wishbone does not use.

At its import on a processor with AVX512-BF16, bitsandbytes warns that it found no kernel of another package for 4-bit
layers in evaluation mode. Wishbone keeps such layers as they are (`model/quantization.py`), so the package would change
nothing, and the line reads like a failure.
"""

from __future__ import annotations

import logging

LOGGER = "bitsandbytes.backends.cpu.ops"
BEGINS = "Failed to load CPU gemm_4bit_forward"


def hide_kernel_advice() -> None:
    """Leave that one line out; bitsandbytes' other lines stay. A second call changes nothing."""
    logging.getLogger(LOGGER).addFilter(_says_something_else)


def _says_something_else(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(BEGINS)
