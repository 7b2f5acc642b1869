"""Rows out of files: JSON lines, JSON, CSV, Parquet.

A row comes with its place ("line 17") and its number, counted from 1: the line of a JSON lines file, else the row. What
cannot be read as a row comes as the `RequestError` that says why, so that one pass finds everything that is wrong.
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
    try:
        names = os.listdir(path.parent)
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    return f"; similar: {', '.join(close)}" if close else ""


def _name_in(directory: Path, path: Path) -> str:
    """The path below the directory, without a leading `data/`: its first part tells the split."""
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
