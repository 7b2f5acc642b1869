"""Memory of the GPU: in segments that grow, so that rows of ever other lengths leave no holes.

PyTorch asks the driver for a block for every large tensor and keeps it for the next one that is not larger. Rows of a
preference run have all lengths, and what they leave of such blocks was some 8 % of the memory on an H200 (docs/log.md).
Expandable segments (`PYTORCH_ALLOC_CONF=expandable_segments:True`, documented by PyTorch) map memory where it is needed
instead. PyTorch reads its setting at the first allocation.
"""

from __future__ import annotations

import os
import platform
import sys

VARIABLE = "PYTORCH_ALLOC_CONF"
OTHERS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Older names of it."""


def let_device_memory_grow() -> bool:
    """Ask for expandable segments and return whether they were asked for.

    What the environment says already is left alone. Windows has no such segments, and in its subsystem for Linux the
    driver refuses them (github.com/pytorch/pytorch/issues/192330).
    """
    given = {VARIABLE, *OTHERS} & os.environ.keys()
    if given or not sys.platform.startswith("linux") or "microsoft" in platform.release().lower():
        return False
    os.environ[VARIABLE] = "expandable_segments:True"
    return True
