"""Standard output and standard error that never fail: what cannot be printed is lost, and the run goes on.

A reader may go away (`| head`), a log's disk may be full, a terminal may close, and a parent may start a process
without standard streams at all. In Python each of these raises wherever something is printed next.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class _Descriptor(io.FileIO):
    """A file descriptor for writing that drops what it cannot take."""

    def write(self, data: object) -> int:
        """Return the length of `data`, in bytes, written or not."""
        size = memoryview(data).nbytes  # type: ignore[arg-type]
        try:
            written = super().write(data)  # type: ignore[arg-type]
        except OSError:
            return size
        return size if written is None else written


@contextmanager
def lasting_output() -> Iterator[None]:
    """Context in which `sys.stdout` and `sys.stderr` never fail; streams that others put there stay as they are."""
    _open_standard_descriptors()
    before = sys.stdout, sys.stderr
    if sys.stdout is sys.__stdout__:
        sys.stdout = _lasting(1, sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _lasting(2, sys.stderr)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def _open_standard_descriptors() -> None:
    """Let no file that is opened later get the number of a standard stream that is closed."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def _lasting(descriptor: int, stream: TextIO | None) -> TextIO:
    """Return a stream over a descriptor, in the encoding of the one before, that writes each line at once."""
    if stream is not None:
        try:
            descriptor = stream.fileno()
        except (OSError, ValueError):
            return stream
    raw = _Descriptor(descriptor, "w", closefd=False)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    errors = getattr(stream, "errors", None) or "strict"
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=encoding,
        errors="backslashreplace" if errors == "strict" else errors,
        line_buffering=True,
        write_through=False,
    )
