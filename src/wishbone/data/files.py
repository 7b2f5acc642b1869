"""Rows from files: JSON lines, JSON, CSV, TSV, Parquet.

A row comes with its place ("line 17") and its number, counted from 1: the line of a JSON lines file, otherwise the row.
In the place of a row that cannot be read there is a `RequestError` with the reason, so one pass finds all errors.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from wishbone.data.formats.recognize import Columns
from wishbone.data.opened_files import ENDINGS
from wishbone.data.parquet_files import read_parquet
from wishbone.data.row_reader import NumberedRow
from wishbone.data.text_files import read_csv, read_json, read_lines, read_tsv
from wishbone.errors import RequestError, encodable
from wishbone.paths import files_below

logger = logging.getLogger(__name__)

_SPLIT_NAMES = "train|test|valid|validation|val|eval|dev"


def data_files(path: Path, split: str) -> list[Path]:
    """The files of a path: the file itself, or those of the directory (of the split, if file names tell splits apart).

    Warnings name the files of a directory that are not read, but for documentation and hidden files; shards that are
    missing; files that may hold the same rows twice; and empty ones.

    Raises:
        RequestError: the path does not exist, the format is unknown, or the directory has no file of that split.
    """
    if path.is_file():
        if _suffix(path) not in _READERS:
            raise RequestError(f"{path}: '{_suffix(path) or path.name}' cannot be read; use {_KINDS}")
        return [path]
    if not path.is_dir():
        raise RequestError(f"{path}: there is no such file or directory{similar_names(path)}")
    everything = sorted(f for f in files_below(path) if not _is_hidden(path, f))
    if unlisted := [f for f in everything if f.is_dir() and (f == path or not f.is_symlink())]:
        raise RequestError(f"{path}: {_names(path, unlisted)} cannot be listed; check the permissions")
    found = [f for f in everything if f.is_file() and _is_readable(f) and f.name[0] != "_"]
    splits = {f: _split_of(str(f.relative_to(path)), split) for f in found}
    of_split = [f for f in found if splits[f] == split]
    if not found:
        raise RequestError(f"{path}: the directory has no file to read; it may hold {_KINDS}")
    others = [f for f in found if splits[f] not in (None, split)]
    if not of_split and others:
        raise RequestError(f"{path}: no file belongs to the split '{split}'; the files are {_names(path, found)}")
    read = of_split or found
    left_out = [f for f in everything if f not in {*read, *others} and not _is_documentation(f)]
    if left_out:
        logger.warning(
            "%s: %s not read: %s. Rows are read from %s%s",
            encodable(path),
            "1 file is" if len(left_out) == 1 else f"{len(left_out)} files are",
            _names(path, left_out),
            _KINDS,
            f" of the split '{split}'" if of_split else "",
        )
    for line in (*_missing_shards(read), *_read_twice(path, read), *_empty(path, read)):
        logger.warning("%s: %s", encodable(path), line)
    return read


def _missing_shards(read: Sequence[Path]) -> Iterator[str]:
    """A line for each set of files `NAME-00000-of-00003` of which some are not there."""
    sets: defaultdict[tuple[str, int], set[int]] = defaultdict(set)
    for file in read:
        if shard := _SHARD.fullmatch(file.name):
            sets[os.fsencode(file.with_name(shard[1])).decode("utf-8", "backslashreplace"), int(shard[3])].add(
                int(shard[2])
            )
    for (name, count), numbers in sets.items():
        if absent := sorted(set(range(count)) - numbers):
            shown = ", ".join(map(str, absent[:10])) + (" ..." if len(absent) > 10 else "")
            yield f"{len(absent)} of {count} shards of {Path(name).name!r} are not there (counted from 0: {shown})"


def _read_twice(directory: Path, read: Sequence[Path]) -> Iterator[str]:
    """A line for each name that stands there with several endings, such as pairs.jsonl beside pairs.jsonl.gz."""
    alike: defaultdict[Path, list[Path]] = defaultdict(list)
    for file in read:
        alike[file.with_name(file.name[: -len(_suffix(file))])].append(file)
    for files in alike.values():
        if len(files) > 1:
            yield f"{_names(directory, files)} are all read; if they hold the same rows, remove all but one"


def _empty(directory: Path, read: Sequence[Path]) -> Iterator[str]:
    """A line for files of no bytes, which a transfer that was cut off leaves."""
    if without := [file for file in read if not file.stat().st_size]:
        yield f"{'1 file is' if len(without) == 1 else f'{len(without)} files are'} empty: {_names(directory, without)}"


def read_rows(files: Sequence[Path], columns: Columns | None = None) -> Iterator[NumberedRow]:
    """Number, place and row (or a `RequestError`) of each row of the files, one file after another.

    With several files, numbers continue from one file to the next, and the place names the file.

    Args:
        files: of the kinds that are read.
        columns: `data.columns`, which tables are read with.

    Raises:
        RequestError: a file as a whole cannot be read.
    """
    if len(files) == 1:
        yield from _rows(files[0], columns)
        return
    total = 0
    for path in files:
        for _, place, row in _rows(path, columns):
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


def _split_of(name: str, asked: str) -> str | None:
    """The split that a path names (`test/0.jsonl`, `helpful-base/test.jsonl.gz`, `pairs_test.csv`), or None.

    Files that `datasets` wrote name it whole: `train_prefs-00000-of-00001.parquet` does not belong to `train`.
    """
    shard = re.search(rf"(?:^|/)((?:{_SPLIT_NAMES})(?:_\w+)?)-\d{{5}}-of-\d{{5}}\.", name)
    if shard:
        return shard[1]
    word = re.search(rf"(?<![^\W_])({re.escape(asked)}|{_SPLIT_NAMES})(?![^\W_])", name)
    return word[1] if word else None


def _names(directory: Path, files: Sequence[Path]) -> str:
    more = f" and {len(files) - 10} more" if len(files) > 10 else ""
    names = (os.fsencode(f.relative_to(directory)).decode("utf-8", "backslashreplace") for f in files[:10])
    return ", ".join(name if name.isprintable() else repr(name) for name in names) + more


def _is_hidden(directory: Path, file: Path) -> bool:
    return (file.name[0] == "_" and not _is_readable(file)) or any(
        part[0] == "." for part in file.relative_to(directory).parts
    )


def _is_readable(file: Path) -> bool:
    return _suffix(file) in _READERS and file.name not in _DESCRIPTIONS


def _is_documentation(file: Path) -> bool:
    return file.name in _DESCRIPTIONS or file.suffix.lower() == ".md" or file.stem.upper() in ("README", "LICENSE")


def _suffix(path: Path) -> str:
    name = path.name.lower()
    compression = next((ending for ending in ENDINGS if name.endswith(ending)), "")
    return Path(name.removesuffix(compression)).suffix + compression


def _rows(path: Path, columns: Columns | None) -> Iterator[NumberedRow]:
    return read_parquet(path, columns) if _suffix(path) == ".parquet" else _READERS[_suffix(path)](path)


_TEXT_READERS: dict[str, Callable[[Path], Iterator[NumberedRow]]] = {
    ".jsonl": read_lines,
    ".ndjson": read_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
}
_READERS: dict[str, Callable[..., Iterator[NumberedRow]]] = {
    **{suffix + ending: read for suffix, read in _TEXT_READERS.items() for ending in ("", *ENDINGS)},
    ".parquet": read_parquet,
}
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\..+")
_DESCRIPTIONS = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")
"""Files in which `datasets` describes a data set."""
_KINDS = f"{', '.join([*_TEXT_READERS, '.parquet'])} (text files also with {', '.join(ENDINGS)})"
