"""A disk on which no file gets larger than a few bytes, for root as well."""

from __future__ import annotations

import hashlib
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Context in which this process can write no file of more than `size` bytes, as at the end of a quota."""
    limits, writes_no_bytecode = resource.getrlimit(resource.RLIMIT_FSIZE), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # Python 3.11.2 keeps what it could write of a module, and fails at the next import
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        sys.dont_write_bytecode = writes_no_bytecode


def contents(directory: Path) -> dict[str, str]:
    """What is below a directory: a digest of each file, nothing for a directory."""
    below = sorted(directory.rglob("*"))
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in below
    }
