"""Files opened for reading: decompressed, and in UTF-8 whatever they were written in.

A compressed file is known by its first bytes, or by the end of its name. A text file that begins with the byte order
mark of UTF-16 or UTF-32, or whose first bytes are zero where those of Latin letters are, is decoded and given on as
UTF-8; halves of surrogate pairs stay what they are and are refused with their line.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa  # type: ignore[import-untyped]

from wishbone.errors import RequestError, one_line


def _zstandard(file: IO[bytes]) -> IO[bytes]:
    return io.BufferedReader(_Decompressed(pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")))


class _Decompressed(io.RawIOBase):
    """An Arrow stream as a raw file of Python."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        """Whether it can be read: yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer from the stream; 0 at its end."""
        content = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


_DECOMPRESSED: dict[str, tuple[bytes, Callable[[IO[bytes]], Any]]] = {
    ".gz": (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
    ".zst": (b"\x28\xb5\x2f\xfd", _zstandard),
    ".xz": (b"\xfd7zXZ\0", lzma.LZMAFile),
    ".bz2": (b"BZh", bz2.BZ2File),
}
ENDINGS = tuple(_DECOMPRESSED)
"""Ends of the names of compressed files."""
_DAMAGE = (gzip.BadGzipFile, zlib.error, EOFError, lzma.LZMAError)
_LONGEST_MAGIC = 6
_RECODED = ("utf-16", "utf-32")


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a text file, decompressed and in UTF-8, and turn errors while it is read into messages.

    Raises:
        RequestError: the file cannot be read, or its compression is damaged.
    """
    ending = ""
    try:
        with path.open("rb") as file:
            ending = _compression(path, file)
            content = cast(IO[bytes], _DECOMPRESSED[ending][1](file)) if ending else file
            yield _in_utf8(content)
    except _DAMAGE as error:
        raise _damaged(path, error) from None
    except OSError as error:
        if ending and error.errno is None:  # of bz2 and of Arrow's streams
            raise _damaged(path, error) from None
        raise unreadable(path, error) from None


def is_compressed(path: Path) -> bool:
    """Whether a file is compressed, by its name or its first bytes; raises OSError."""
    with path.open("rb") as file:
        return bool(_compression(path, file))


def unreadable(path: Path, error: OSError) -> RequestError:
    """Return the error for a file that the operating system does not let us read."""
    reason = error.strerror or type(error).__name__
    return RequestError(f"{path}: cannot be read ({reason}); check the file and its permissions")


def _compression(path: Path, file: IO[bytes]) -> str:
    """The ending that stands for the compression of a file; empty for none. The file stays at its start."""
    named = next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), "")
    if named:
        return named
    magic = file.read(_LONGEST_MAGIC)
    file.seek(0)
    return next((ending for ending, (first, _) in _DECOMPRESSED.items() if magic.startswith(first)), "")


def _damaged(path: Path, error: Exception) -> RequestError:
    return RequestError(f"{path}: the compressed file is damaged ({one_line(error)}); write it again")


def _in_utf8(file: IO[bytes]) -> IO[bytes]:
    buffered = file if hasattr(file, "peek") else io.BufferedReader(cast(Any, file))
    first = cast(Any, buffered).peek(4)[:4]
    encoding = json.detect_encoding(first) if first.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in first else ""
    return cast(IO[bytes], io.BufferedReader(_Recoded(buffered, encoding))) if encoding[:6] in _RECODED else buffered


class _Recoded(io.RawIOBase):
    """A file in UTF-16 or UTF-32 as a raw file in UTF-8."""

    def __init__(self, file: IO[bytes], encoding: str) -> None:
        self._text = io.TextIOWrapper(cast(Any, file), encoding, errors="surrogatepass", newline="")
        self._rest = b""

    def readable(self) -> bool:
        """Whether it can be read: yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with the next characters; 0 at the end of the file."""
        if not self._rest:
            try:
                self._rest = self._text.read(max(len(buffer) // 4, 1)).encode("utf-8", "surrogatepass")
            except UnicodeDecodeError as error:
                raise OSError(
                    None, f"ends inside a character of {self._text.encoding.upper()[:6]} ({error.reason})"
                ) from None
        content, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(content)] = content
        return len(content)
