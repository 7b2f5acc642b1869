"""Rows from Parquet files.

Columns are read as Arrow stores them. Other statements of a file about its columns ("this one holds images") are not
followed, because that would open any path that it names. The exception are JSON columns, which Wishbone and `datasets`
write.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from wishbone.data.formats import columns_to_read
from wishbone.data.formats.prompt import PICTURES
from wishbone.data.formats.recognize import Columns
from wishbone.data.json_text import NotJsonError, parse_json
from wishbone.data.row_reader import NumberedRow
from wishbone.errors import RequestError, one_line

_BATCH, _BATCH_WITH_IMAGES = 1000, 32
_DAMAGE = (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError)
"""Errors of damaged pages and names; wrong lengths can ask for more memory than there is."""
_UNREADABLE = (ValueError, OverflowError, TypeError, KeyError, NotJsonError)
"""Errors of stored values without a Python value: bytes that are not text, a date after year 9999."""


def read_parquet(path: Path, columns: Columns | None = None) -> Iterator[NumberedRow]:
    """The rows of a Parquet file, with the columns that some layout uses; of others the name, and None.

    Raises:
        RequestError: the file cannot be read or is damaged.
    """
    try:
        with path.open("rb") as content, pq.ParquetFile(content) as file:
            schema = file.schema_arrow
            names = columns_to_read(schema.names, columns)
            others = [name for name in schema.names if name not in names]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise RequestError(f"{path}: has two columns named {twice[0]!r:.40}; give each column a name")
            number = 0
            size = _BATCH_WITH_IMAGES if set(names) & set(PICTURES) else _BATCH
            for batch in file.iter_batches(batch_size=size, columns=names, use_threads=False):
                for row in rows_of_batch(batch, others):
                    number += 1
                    yield number, f"row {number}", row
    except _DAMAGE as error:
        raise RequestError(f"{path}: cannot be read as a Parquet file ({one_line(error)}); write it again") from None


def rows_of_batch(batch: Any, others: Iterable[str] = ()) -> Iterator[Any]:
    """The rows of an Arrow record batch, each a dict, or a `RequestError` that names the values that cannot be read.

    Keys of nested objects whose value is null are left out: Arrow adds the keys of each object to all others.

    Args:
        batch: the columns that are read.
        others: names of columns that the table has besides; they are None in each row.
    """
    unread = dict.fromkeys(others)
    columns = {name: list(_values(column)) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    for number in range(batch.num_rows):
        row = {name: values[number] for name, values in columns.items()} | unread
        problems = [f"{name} {value}" for name, value in row.items() if isinstance(value, RequestError)]
        yield RequestError(problems) if problems else row


def _values(column: Any) -> Iterator[Any]:
    nested = pa.types.is_nested(column.type) or _has_json(column.type)
    for scalar in column:
        try:
            value = scalar.as_py()
            yield _decoded(value, column.type) if nested else value
        except _UNREADABLE as error:
            yield RequestError(f"cannot be read ({one_line(error):.80})")


def _has_json(kind: Any) -> bool:
    if isinstance(kind, pa.JsonType):
        return True
    return isinstance(kind, pa.DataType) and any(_has_json(kind.field(i).type) for i in range(kind.num_fields))


def _decoded(value: Any, kind: Any) -> Any:
    """A value with the JSON texts in it parsed, and without keys that Arrow added; its type tells where they are."""
    if value is None:
        return None
    if isinstance(kind, pa.JsonType):
        return parse_json(value)
    if isinstance(value, list) and kind.num_fields == 1:
        return [_decoded(item, kind.field(0).type) for item in value]
    if isinstance(value, dict):
        return {name: _decoded(item, kind.field(name).type) for name, item in value.items() if item is not None}
    return value
