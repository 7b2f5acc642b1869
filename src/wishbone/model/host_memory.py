"""Memory of the host: kept instead of given back, in large pages.

A training step on a CPU allocates and frees tensors of many megabytes. By default glibc returns each of them to the
kernel, which must clear the pages again at the next allocation, in pages of 4 KiB. Two documented settings avoid it:
`mallopt` keeps freed memory in the process, and `THP_MEM_ALLOC_ENABLE` lets PyTorch ask for 2 MiB pages. Together they
made a step on a 2-core Xeon 1.2 times faster (docs/log.md). PyTorch reads its setting when it is imported.
"""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
KEPT_BYTES = 2**31 - 1
HEAP_BYTES = 2**30


def keep_host_memory() -> bool:
    """Keep freed memory in this process and ask for large pages; return whether the C library could be told.

    Settings that the environment already makes (`THP_MEM_ALLOC_ENABLE`, `MALLOC_TRIM_THRESHOLD_`,
    `MALLOC_MMAP_THRESHOLD_`, a preloaded allocator) are left alone.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    chosen = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "LD_PRELOAD", "GLIBC_TUNABLES"} & os.environ.keys()
    if chosen or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, HEAP_BYTES)) and bool(mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))
