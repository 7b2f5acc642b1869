"""How this process asks for memory: on the host kept and in large pages, on the GPU in segments that grow.

Host. A training step on a CPU allocates and frees tensors of many megabytes. By default glibc returns each of them to
the kernel, which must clear the pages again at the next allocation, in pages of 4 KiB. Two documented settings avoid
it: `mallopt` keeps freed memory in the process, and `THP_MEM_ALLOC_ENABLE` lets PyTorch ask for 2 MiB pages. Together
they made a step on a 2-core Xeon 1.2 times faster (docs/log.md). PyTorch reads its setting when it is imported. While
a model is loaded freed memory is given back all the same: the small tensors that stay would lie between large ones that
go, and memory that is kept then has holes of the size of the model.

GPU. PyTorch asks the driver for a block for every large tensor and keeps it for the next tensor that is not larger.
Rows of a preference run have all lengths, and the gaps they leave in such blocks were some 8 % of the memory of an H200
(docs/log.md). Expandable segments (`PYTORCH_ALLOC_CONF=expandable_segments:True`, documented by PyTorch) map memory
where it is needed instead. PyTorch reads its setting at the first allocation.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
KEPT_BYTES = 2**31 - 1
HEAP_BYTES = 2**30
DEFAULT_BYTES = 128 * 2**10
"""Both thresholds of glibc where nobody sets them."""
MALLOC_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "LD_PRELOAD", "GLIBC_TUNABLES")
"""Environment variables with which somebody chose how the C library allocates."""

ALLOCATOR_SETTING = "PYTORCH_ALLOC_CONF"
OLDER_NAMES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Names that PyTorch's setting had before."""


class _Kept:
    """Whether this process keeps freed memory."""

    now = False


def keep_host_memory() -> bool:
    """Keep freed memory in this process and ask for large pages; return whether the C library took the setting.

    Settings that the environment already makes (`THP_MEM_ALLOC_ENABLE` and `MALLOC_SETTINGS`) stay as they are.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if not os.environ.keys().isdisjoint(MALLOC_SETTINGS) or not sys.platform.startswith("linux"):
        return False
    _Kept.now = _set_thresholds(HEAP_BYTES, KEPT_BYTES)
    return _Kept.now


@contextmanager
def host_memory_given_back() -> Iterator[None]:
    """Context in which memory that is freed goes back to the kernel although `keep_host_memory` was called."""
    if not _Kept.now:
        yield
        return
    _set_thresholds(DEFAULT_BYTES, DEFAULT_BYTES)
    try:
        yield
    finally:
        _set_thresholds(HEAP_BYTES, KEPT_BYTES)


def _set_thresholds(mapped: int, kept: int) -> bool:
    """Set the size from which a block is mapped alone, and the free bytes to keep; return whether both were set."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_THRESHOLD, mapped)) and bool(mallopt(M_TRIM_THRESHOLD, kept))


def let_device_memory_grow() -> bool:
    """Ask for expandable segments; return whether this call asked for them.

    A setting in the environment stays as it is. Windows has no such segments, and in its subsystem for Linux the driver
    refuses them (github.com/pytorch/pytorch/issues/192330).
    """
    given = {ALLOCATOR_SETTING, *OLDER_NAMES} & os.environ.keys()
    if given or not sys.platform.startswith("linux") or "microsoft" in platform.release().lower():
        return False
    os.environ[ALLOCATOR_SETTING] = "expandable_segments:True"
    return True
