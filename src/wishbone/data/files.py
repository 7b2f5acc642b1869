"""Rows out of files: JSON lines, JSON, CSV, Parquet.

A row comes with its place ("line 17") and its number, counted from 1: the line of a JSON lines file, else the row. What
cannot be read as a row comes as the `RequestError` that says why, so that one pass finds everything that is wrong.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from datasets import Features

from wishbone.data.formats import columns_to_read
from wishbone.data.rows import NumberedRow
from wishbone.errors import RequestError

_SPLIT_NAMES = "train|test|valid|validation|val|eval|dev"


def data_files(path: Path, split: str) -> list[Path]:
    """The files a path stands for: itself, or those of the directory (of the split, where names tell splits apart).

    Raises:
        RequestError: there is no such path, the format is unknown, or the directory has no file of that split.
    """
    if path.is_file():
        if _suffix(path) not in _READERS:
            raise RequestError(f"{path}: '{_suffix(path) or path.name}' is not read; use {', '.join(_READERS)}")
        return [path]
    if not path.is_dir():
        raise RequestError(f"{path}: there is no such file or directory{similar_names(path)}")
    found = sorted(f for f in path.rglob("*") if f.is_file() and _suffix(f) in _READERS and f.name[0] not in "._")
    of_split = [f for f in found if re.match(rf"{re.escape(split)}(\W|_|$)", _name_in(path, f))]
    if of_split:
        return of_split
    if not found:
        raise RequestError(f"{path}: the directory has no file to read; it may hold {', '.join(_READERS)}")
    if any(re.match(rf"({_SPLIT_NAMES})(\W|_|$)", _name_in(path, f)) for f in found):
        names = ", ".join(str(f.relative_to(path)) for f in found[:10])
        raise RequestError(f"{path}: no file is of the split '{split}'; the files are {names}")
    return found


def read_rows(files: Sequence[Path]) -> Iterator[NumberedRow]:
    """Number, place and row (or the `RequestError` in its stead) for each row of the files, one after another.

    Of several files the rows are counted through, and the place names the file.

    Raises:
        RequestError: a file as a whole cannot be read.
    """
    if len(files) == 1:
        yield from _READERS[_suffix(files[0])](files[0])
        return
    total = 0
    for path in files:
        for _, place, row in _READERS[_suffix(path)](path):
            total += 1
            yield total, f"{path.name} {place}", row


def similar_names(path: Path) -> str:
    """The names beside a missing path that are most like it, as the end of a sentence; empty if there are none."""
    if not path.parent.is_dir():
        return f" (nor is there a directory {path.parent})"
    close = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=3, cutoff=0.5)
    return f"; similar: {', '.join(close)}" if close else ""


def _name_in(directory: Path, path: Path) -> str:
    """The path below the directory, without a leading `data/`: its first part tells the split."""
    return str(path.relative_to(directory)).removeprefix("data/")


def _suffix(path: Path) -> str:
    name = path.name.lower()
    compressed = ".gz" if name.endswith(".gz") else ""
    return Path(name.removesuffix(".gz")).suffix + compressed


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def _read_lines(path: Path) -> Iterator[NumberedRow]:
    try:
        with _open(path) as lines:
            for number, line in enumerate(lines, 1):
                text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if not text.isspace() and text:
                    yield number, f"line {number}", _parsed(text)
    except (gzip.BadGzipFile, EOFError) as error:
        raise RequestError(f"{path}: the compressed file is damaged ({error}); write it again") from None


def _parsed(line: bytes) -> Any:
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        return RequestError(f"is not UTF-8 text (byte {error.start + 1})")
    except json.JSONDecodeError as error:
        return RequestError(f"is not JSON: {error.msg} at character {error.pos + 1}")
    except RecursionError:
        return RequestError("is JSON nested too deeply")
    return row if isinstance(row, dict) else RequestError("is JSON, but not an object with named fields")


def _read_json(path: Path) -> Iterator[NumberedRow]:
    with _open(path) as file:
        raw = file.read()
    if not raw.strip():
        return
    try:
        content = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: is not UTF-8 text (byte {error.start + 1}); save it as UTF-8") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and raw.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            yield from _read_lines(path)  # one object a line, under the name of the other format
            return
        where = f"line {error.lineno}, column {error.colno}"
        raise RequestError(f"{path}: is not JSON: {error.msg} at {where}; correct the file there") from None
    for number, row in enumerate(_rows_in(content, path), 1):
        is_row = isinstance(row, dict)
        yield number, f"row {number}", row if is_row else RequestError("is not an object with named fields")


def _rows_in(content: Any, path: Path) -> list[Any]:
    """The rows of a JSON document: a list, an object with one list of objects in it, or an object of columns."""
    if isinstance(content, list):
        return content
    lists = (
        {name: value for name, value in content.items() if isinstance(value, list)} if isinstance(content, dict) else {}
    )
    tables = [value for value in lists.values() if value and isinstance(value[0], dict)]
    if len(tables) == 1 and not {"chosen", "rejected"} <= lists.keys():
        return tables[0]
    if len(lists) > 1:
        lengths = {name: len(value) for name, value in lists.items()}
        if len(set(lengths.values())) > 1:
            raise RequestError(f"{path}: the columns differ in length ({lengths}); every row needs every column")
        return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    raise RequestError(f"{path}: holds no list of rows; give a list of objects, or an object with one such list in it")


def _read_csv(path: Path) -> Iterator[NumberedRow]:
    csv.field_size_limit(sys.maxsize)
    with _open(path) as file:
        lines = (line.decode("utf-8-sig" if i == 0 else "utf-8") for i, line in enumerate(file))
        reader = csv.DictReader(lines, strict=True)
        try:
            for number, row in enumerate(reader, 1):
                yield number, f"row {number} (line {reader.line_num})", _csv_row(row)
        except UnicodeDecodeError:
            raise RequestError(f"{path}: line {reader.line_num + 1} is not UTF-8 text; save it as UTF-8") from None
        except csv.Error as error:
            raise RequestError(f"{path}: line {reader.line_num}: {error}; is a quotation mark not closed?") from None


def _csv_row(row: dict[Any, Any]) -> Any:
    if None in row:
        return RequestError(f"has more fields than the header ({len(row) - 1})")
    missing = [name for name, value in row.items() if value is None]
    if missing:
        return RequestError(f"has fewer fields than the header: no {', '.join(missing)}")
    return {name: _cell(value) for name, value in row.items()}


def _cell(value: str) -> Any:
    """A cell that is the JSON of messages is those messages; every other cell is text."""
    if not re.match(r'\s*(\[\s*)?\{\s*"', value):
        return value
    try:
        content = json.loads(value)
    except json.JSONDecodeError:
        return value
    first = content[0] if isinstance(content, list) else content
    return content if isinstance(first, dict) and first.keys() & {"role", "from", "messages"} else value


def _read_parquet(path: Path) -> Iterator[NumberedRow]:
    try:
        with pq.ParquetFile(path) as file:
            features = Features.from_arrow_schema(file.schema_arrow)
            names = columns_to_read(list(features))
            features = Features({name: features[name] for name in names})
            number = 0
            for batch in file.iter_batches(batch_size=1000, columns=names):
                columns = features.decode_batch(batch.to_pydict())
                for values in zip(*columns.values(), strict=True):
                    number += 1
                    yield number, f"row {number}", dict(zip(columns, values, strict=True))
    except pa.ArrowException as error:
        raise RequestError(f"{path}: is not a Parquet file that can be read ({error}); write it again") from None


_READERS: dict[str, Callable[[Path], Iterator[NumberedRow]]] = {
    ".jsonl": _read_lines,
    ".jsonl.gz": _read_lines,
    ".ndjson": _read_lines,
    ".json": _read_json,
    ".json.gz": _read_json,
    ".csv": _read_csv,
    ".csv.gz": _read_csv,
    ".parquet": _read_parquet,
}
