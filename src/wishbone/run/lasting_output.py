"""Standard output and standard error that fail in one place, or never.

A reader may go away (`| head`), a log's disk may be full, a terminal may close, and a parent may start a process
without standard streams at all. In Python each of these raises wherever something is printed next.

    a run                what cannot be printed is lost, and training continues
    any other command    what it prints is its result: it ends where standard output takes no more, with one line
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class OutputFailed(Exception):
    """Standard output failed or was closed.

    Attributes:
        number: of the system's error.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror or type(error).__name__)
        self.number = error.errno


class _Descriptor(io.FileIO):
    """A file descriptor for writing that drops what it cannot take.

    Attributes:
        raises: whether the first failure is raised as `OutputFailed`.
    """

    raises = False

    def write(self, data: object) -> int:
        """Return the length of `data`, in bytes, written or not."""
        size = memoryview(data).nbytes  # type: ignore[arg-type]
        try:
            written = super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            if self.raises:
                self.raises = False  # what is still in a buffer is dropped
                raise OutputFailed(error) from error
            return size
        return size if written is None else written


@contextmanager
def lasting_output() -> Iterator[None]:
    """Context in which `sys.stdout` and `sys.stderr` never fail; streams that others put there stay as they are."""
    with _own_streams():
        raw = _descriptor(sys.stdout)
        raised = raw is not None and raw.raises
        if raw is not None:
            raw.raises = False
        try:
            yield
        finally:
            if raw is not None:
                raw.raises = raised


@contextmanager
def checked_output() -> Iterator[None]:
    """Context in which `sys.stderr` never fails and `sys.stdout` fails in one way.

    Raises:
        OutputFailed: where something is printed that standard output does not take, or at the end.
    """
    with _own_streams():
        raw = _descriptor(sys.stdout)
        if raw is not None:
            raw.raises = True
        try:
            yield
        finally:
            sys.stdout.flush()
            if raw is not None:
                raw.raises = False


@contextmanager
def _own_streams() -> Iterator[None]:
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


def _descriptor(stream: TextIO) -> _Descriptor | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, _Descriptor) else None


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
