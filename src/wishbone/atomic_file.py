"""A file that is written whole or not at all, by whatever the disk fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

_STEM = 60
"""Characters of a file's name in that of the part beside it, which with 255 bytes would be too long."""


def write_text(path: Path, text: str) -> None:
    """Replace a file by `text` in UTF-8; where that fails, nothing changes and nothing is left beside it.

    Raises:
        OSError: it cannot be written.
    """
    with whole_file(path) as file:
        file.write(text)


@contextmanager
def whole_file(path: Path, *, new: bool = False) -> Iterator[TextIO]:
    """Yield a text file in UTF-8 that takes its place when the block ends; after an error nothing has changed.

    Args:
        path: of the file.
        new: never replace a file.

    Raises:
        FileExistsError: `new`, and something is there.
        OSError: it cannot be written.
    """
    partial = path.with_name(f".{path.name[:_STEM]}.partial")
    claimed = False
    try:
        with partial.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if new:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            claimed = True
        partial.replace(path)
    except BaseException:
        for left in (partial, *([path] if claimed else [])):
            with suppress(OSError):
                left.unlink()
        raise
