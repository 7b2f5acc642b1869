"""Rows from files: JSON lines, JSON, CSV, Parquet.

A row comes with its place ("line 17") and its number, counted from 1: the line of a JSON lines file, otherwise the row.
In the place of a row that cannot be read there is a `RequestError` with the reason, so one pass finds all errors.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from wishbone.data.parquet_files import read_parquet
from wishbone.data.rows import NumberedRow
from wishbone.data.text_files import read_csv, read_json, read_lines
from wishbone.errors import RequestError

_SPLIT_NAMES = "train|test|valid|validation|val|eval|dev"


def data_files(path: Path, split: str) -> list[Path]:
    """The files of a path: the file itself, or those of the directory (of the split, if file names tell splits apart).

    Raises:
        RequestError: the path does not exist, the format is unknown, or the directory has no file of that split.
    """
    if path.is_file():
        if _suffix(path) not in _READERS:
            raise RequestError(f"{path}: '{_suffix(path) or path.name}' cannot be read; use {', '.join(_READERS)}")
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
        raise RequestError(f"{path}: no file belongs to the split '{split}'; the files are {names}")
    return found


def read_rows(files: Sequence[Path]) -> Iterator[NumberedRow]:
    """Number, place and row (or a `RequestError`) of each row of the files, one file after another.

    With several files, numbers continue from one file to the next, and the place names the file.

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
    """The names in the folder of a missing path that are most similar, as the end of a sentence; empty without any."""
    if not path.parent.is_dir():
        return f" (nor is there a directory {path.parent})"
    try:
        names = os.listdir(path.parent)
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    return f"; similar: {', '.join(close)}" if close else ""


def _name_in(directory: Path, path: Path) -> str:
    """The path below the directory, without a leading `data/`; it begins with the name of the split."""
    return str(path.relative_to(directory)).removeprefix("data/")


def _suffix(path: Path) -> str:
    name = path.name.lower()
    compressed = ".gz" if name.endswith(".gz") else ""
    return Path(name.removesuffix(".gz")).suffix + compressed


_READERS: dict[str, Callable[[Path], Iterator[NumberedRow]]] = {
    ".jsonl": read_lines,
    ".jsonl.gz": read_lines,
    ".ndjson": read_lines,
    ".json": read_json,
    ".json.gz": read_json,
    ".csv": read_csv,
    ".csv.gz": read_csv,
    ".parquet": read_parquet,
}
