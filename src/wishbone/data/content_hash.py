"""What rows hold, as one hash: equal for equal values in equal order, however a data set is stored.

The rows are read in batches of a fixed size, so that chunks of files and shuffling by indices do not count. Of each
Arrow array first the shape is hashed (which values are there, lengths of lists and texts) and then the values, without
a Python object for each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
from datasets import Dataset

ROWS = 1000
"""Rows that are read at a time."""


class Digest(Protocol):
    """A hash that is fed piece by piece, as those of `hashlib` are."""

    def update(self, data: Any, /) -> None:
        """Go on with the next bytes."""


def content_hash(dataset: Dataset, columns: Sequence[str]) -> str:
    """Return the SHA-256 of what columns hold, row by row, in hexadecimal.

    Args:
        dataset: rows of any kind; images and sounds are not decoded.
        columns: in the order in which they are hashed. In which integer or floating type numbers are kept, and whether
            texts are large, does not count.
    """
    digest = hashlib.sha256()
    digest.update(repr(list(columns)).encode())
    for batch in dataset.select_columns(list(columns)).with_format("arrow").iter(ROWS):
        for name in columns:
            _add(digest, batch.column(name).combine_chunks())
    return digest.hexdigest()


def _add(digest: Digest, array: Any) -> None:
    if isinstance(array, pa.ChunkedArray):  # of no rows
        array = pa.concat_arrays(array.chunks) if array.chunks else pa.nulls(0)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    kind = array.type
    digest.update(f"{len(array)} {array.null_count};".encode())
    if array.null_count:
        digest.update(np.asarray(array.is_valid()).tobytes())
        array = array.drop_null()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        digest.update(np.asarray(pc.list_value_length(array), dtype=np.int64).tobytes())
        _add(digest, array.flatten())
    elif pa.types.is_struct(kind):
        for field, values in zip(kind, array.flatten(), strict=True):
            digest.update(field.name.encode())
            _add(digest, values)
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        digest.update(np.asarray(pc.binary_length(array), dtype=np.int64).tobytes())
        _add_bytes(digest, array, np.int32)
    elif pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        digest.update(np.asarray(pc.binary_length(array), dtype=np.int64).tobytes())
        _add_bytes(digest, array, np.int64)
    elif pa.types.is_integer(kind):
        digest.update(np.ascontiguousarray(array, dtype=np.int64).tobytes())
    elif pa.types.is_floating(kind):
        digest.update(np.ascontiguousarray(array, dtype=np.float64).tobytes())
    elif len(array):
        digest.update(repr(array.to_pylist()).encode("utf-8", "surrogatepass"))


def _add_bytes(digest: Digest, array: Any, offsets: type[np.int32 | np.int64]) -> None:
    """The bytes of all texts, one after the other; an array may be a part of its buffers."""
    if len(array):
        _, places, content = array.buffers()
        ends = np.frombuffer(places, dtype=offsets)[array.offset : array.offset + len(array) + 1]
        if ends[-1] > ends[0]:
            digest.update(memoryview(content)[int(ends[0]) : int(ends[-1])])
