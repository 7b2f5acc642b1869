"""Rows from text files: JSON lines, JSON, CSV and TSV, each also compressed.

No file is trusted. A damaged row becomes a `RequestError` with the reason; a file that is damaged as a whole is
refused. The length of lines is limited, so a small compressed file cannot fill the memory.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path
from typing import IO, Any

import psutil

from wishbone.data.formats import FORMATS
from wishbone.data.formats.recognize import has_columns
from wishbone.data.json_text import NotJsonError, parse_json
from wishbone.data.opened_files import is_compressed, opened
from wishbone.data.row_reader import NumberedRow
from wishbone.errors import RequestError

LONGEST_LINE = 2**26
"""Most bytes of a line, and most characters of a CSV field: 64 MiB."""
MEMORY_A_BYTE = 8
"""Bytes of memory per byte of a JSON document that is parsed as a whole; rows of texts take 2 to 4."""
MOST_EXPANSION, ALWAYS_READ = 200, 2**26
"""A compressed document may expand to 64 MiB or by this factor. JSON of real pairs expands 3 to 10 times."""

_BLOCK = 2**24
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_lines(path: Path) -> Iterator[NumberedRow]:
    """The rows of JSON lines; blank lines are skipped. A file that is one JSON list is read as that.

    Raises:
        RequestError: the file cannot be read, is damaged, has a line of more than `LONGEST_LINE` bytes, or begins a
            list that is not JSON.
    """
    with opened(path) as file:
        filled = ((number, line) for number, line in enumerate(_lines(file, path), 1) if line and not line.isspace())
        first = next(filled, None)
        if first is not None and not first[1].lstrip().startswith(b"["):
            for number, line in chain([first], filled):
                yield number, f"line {number}", _object(line)
            return
    if first is not None:
        yield from read_json(path)


def _lines(file: IO[bytes], path: Path) -> Iterator[bytes]:
    """The lines of a file with their ends, without a byte order mark."""
    for number in count(1):
        line = file.readline(LONGEST_LINE + 1)
        if not line:
            return
        if len(line) > LONGEST_LINE:
            raise RequestError(
                f"{path}: line {number} is longer than {LONGEST_LINE >> 20} MiB; write one row per line, or split it"
            )
        yield line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line


def _object(line: bytes) -> Any:
    try:
        row = parse_json(line.rstrip(b"\r\n"), unique_keys=True)  # an error at the end of the line is then in this line
    except NotJsonError as error:
        return RequestError(str(error))
    return row if isinstance(row, dict) else RequestError("is JSON, but not an object with named fields")


def read_json(path: Path) -> Iterator[NumberedRow]:
    """The rows of a JSON document: a list, an object with one list in it, or an object of columns.

    Raises:
        RequestError: the file cannot be read, is damaged, is not JSON, has no rows, or is too large to parse.
    """
    raw = _whole(path)
    if not raw.strip():
        return
    try:
        content = parse_json(raw.removeprefix(_BYTE_ORDER_MARK), unique_keys=True)
    except NotJsonError as error:
        if "Extra data" in str(error) and raw.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            del raw
            yield from read_lines(path)  # one object per line in a .json file
            return
        raise RequestError(f"{path}: {error}; correct the file there, or write it again as UTF-8") from None
    del raw
    for number, row in enumerate(_rows_in(content, path), 1):
        is_row = isinstance(row, dict)
        yield number, f"row {number}", row if is_row else RequestError("is not an object with named fields")


def _whole(path: Path) -> bytes:
    """The decompressed content of a file that can be parsed in the free memory."""
    with opened(path) as file:
        size, free = path.stat().st_size, psutil.virtual_memory().available // MEMORY_A_BYTE
        limit = min(free, max(ALWAYS_READ, size * MOST_EXPANSION)) if is_compressed(path) else free
        raw = _up_to(limit + 1, file)
    if len(raw) > limit:
        raise RequestError(
            f"{path}: has more than {limit >> 20} MiB of JSON, too much to read as one document here; write it as "
            "JSON lines (.jsonl), which are read row by row"
        )
    return raw


def _up_to(most: int, file: IO[bytes]) -> bytes:
    """At most so many bytes of a file. Python's own `read` of a number of bytes reserves that much memory at once."""
    blocks = []
    while most > 0 and (block := file.read(min(most, _BLOCK))):
        blocks.append(block)
        most -= len(block)
    return b"".join(blocks)


def _rows_in(content: Any, path: Path) -> list[Any]:
    """The rows of a JSON document: a list, an object with one list of objects in it, or an object of columns."""
    if isinstance(content, list):
        return content
    lists = (
        {name: value for name, value in content.items() if isinstance(value, list)} if isinstance(content, dict) else {}
    )
    tables = [value for value in lists.values() if value and isinstance(value[0], dict)]
    if len(tables) == 1 and not any(has_columns(lists, layout) for layout in FORMATS):
        return tables[0]
    if len(lists) > 1:
        lengths = {name: len(value) for name, value in lists.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{name!r:.40} has {length}" for name, length in list(lengths.items())[:10])
            raise RequestError(f"{path}: the columns have different lengths ({told}); every row needs every column")
        return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    raise RequestError(f"{path}: has no list of rows; give a list of objects, or an object with one such list in it")


def read_tsv(path: Path) -> Iterator[NumberedRow]:
    """The same as `read_csv` for values that are separated by tabs."""
    return read_csv(path, separator="\t")


def read_csv(path: Path, *, separator: str = ",") -> Iterator[NumberedRow]:
    """The rows of comma-separated values; the first line names the columns.

    Raises:
        RequestError: the file cannot be read, is damaged, has a wrong header or ends inside quotation marks.
    """
    earlier = csv.field_size_limit(LONGEST_LINE)
    try:
        with opened(path) as file:
            yield from _csv_rows(path, file, separator)
    finally:
        csv.field_size_limit(earlier)


def _csv_rows(path: Path, file: IO[bytes], separator: str) -> Iterator[NumberedRow]:
    ended = False

    def decoded() -> Iterator[str]:
        """Lines; bytes that are not UTF-8 become halves of surrogate pairs, so they damage only their row."""
        nonlocal ended
        for line in _lines(file, path):
            yield line.decode("utf-8", "surrogateescape")
        ended = True

    reader = csv.reader(decoded(), strict=True, delimiter=separator)
    header: list[str] | None = None
    number = 0
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            where = f"line {reader.line_num}"
            if ended or header is None:
                raise RequestError(f"{path}: {where}: {error}; is a quotation mark not closed?") from None
            number += 1
            yield number, f"row {number} ({where})", RequestError(f"is not CSV: {error}")
            continue
        if header is None:
            header = _csv_header(path, cells, separator)
        elif cells:
            number += 1
            yield number, f"row {number} (line {reader.line_num})", _csv_row(header, cells)


def _csv_header(path: Path, names: list[str], separator: str) -> list[str]:
    if not _is_text(names):
        raise RequestError(f"{path}: line 1 is not UTF-8 text; save the file as UTF-8")
    if len(names) == 1 and (others := [sign for sign in (";", "\t", "|", ",") if sign in names[0]]):
        expected = "commas" if separator == "," else "tabs"
        raise RequestError(
            f"{path}: the header has one column, whose name contains {others[0]!r}; columns are separated by "
            f"{expected}: save the file so"
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RequestError(f"{path}: the header names {', '.join(map(repr, twice[:5]))} twice; give each column a name")
    return names


def _csv_row(header: list[str], cells: list[str]) -> Any:
    if len(cells) > len(header):
        return RequestError(f"has more fields than the header ({len(header)})")
    if len(cells) < len(header):
        return RequestError(f"has fewer fields than the header: no {', '.join(header[len(cells) :])[:200]}")
    if not _is_text(cells):
        return RequestError("is not UTF-8 text; save the file as UTF-8")
    return dict(zip(header, cells, strict=True))


def _is_text(cells: list[str]) -> bool:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return False
    return True
