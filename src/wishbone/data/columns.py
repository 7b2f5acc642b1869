"""Columns of a data set as NumPy arrays, some rows at a time, without a Python object for every token or message.

A data set may be larger than memory, and shuffled: then a column that is read at once is a copy of all its rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
from datasets import Dataset

Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

ROWS = 1000
"""Rows that are read at a time."""


class IdLists:
    """Lists of token ids of some rows; `lists[row]` is a view of the ids of one row.

    Attributes:
        lengths: [rows], int64: tokens of each row.
    """

    def __init__(self, lists: Any) -> None:
        self.lengths: Counts = np.asarray(pc.list_value_length(lists), dtype=np.int64)
        self._values = np.ascontiguousarray(lists.flatten(), dtype=np.int32)
        self._ends = np.cumsum(self.lengths).tolist()

    def __getitem__(self, row: int) -> npt.NDArray[np.int32]:
        end = self._ends[row]
        return self._values[end - self.lengths[row] : end]


def arrow_batches(dataset: Dataset, names: Sequence[str]) -> Iterator[list[Any]]:
    """The Arrow arrays of some columns, of at most `ROWS` rows each."""
    for table in dataset.select_columns(list(names)).with_format("arrow").iter(ROWS):
        yield [pa.concat_arrays(table.column(name).chunks) for name in names]


def token_lengths(dataset: Dataset, names: Sequence[str]) -> list[Counts]:
    """How many tokens each row has in each of some columns of token ids: one array [rows], int64, for each column."""
    found = [
        [np.asarray(pc.list_value_length(lists), dtype=np.int64) for lists in batch]
        for batch in arrow_batches(dataset, names)
    ]
    return [np.concatenate([np.zeros(0, dtype=np.int64), *counts]) for counts in zip(*found, strict=True)]


IMAGE_KEY = "image_key"
"""Column that stands for the images of a pair: 63 bits, the same for the same files in the same order; 0: no images."""


def keys_with_images(keys: npt.NDArray[np.uint64], dataset: Dataset) -> npt.NDArray[np.uint64]:
    """Return the keys of pairs (`repeats`), [pairs], so that other images make another key."""
    if IMAGE_KEY not in dataset.column_names:
        return keys
    images = np.asarray(dataset.with_format("numpy")[IMAGE_KEY][:], dtype=np.int64).astype(np.uint64)
    return keys ^ (images << np.uint64(1))


def rows_with_images(dataset: Dataset) -> Flags:
    """Rows that have images, [rows]."""
    if IMAGE_KEY not in dataset.column_names:
        return np.zeros(len(dataset), dtype=bool)
    found: Flags = np.asarray(dataset.with_format("numpy")[IMAGE_KEY][:], dtype=np.int64) != 0
    return found


def blank_completions(dataset: Dataset, name: str) -> Flags:
    """Rows of a column of texts or lists of messages that are blank; none if there is no such column.

    A message is blank if its content is white space and it has no other keys (such as tool_calls).
    """
    if name not in dataset.column_names:
        return np.zeros(len(dataset), dtype=bool)
    return np.concatenate([np.zeros(0, dtype=bool), *_blank_batches(dataset, name)])


_ROLE, _CONTENT = pa.field("role", pa.string()), pa.field("content", pa.string())
_PLAIN_MESSAGES = (pa.struct([_ROLE, _CONTENT]), pa.struct([_CONTENT, _ROLE]))


def _blank_batches(dataset: Dataset, name: str) -> Iterator[Flags]:
    kind = dataset.select_columns([name]).data.schema.field(name).type
    if pa.types.is_string(kind):
        yield from (np.asarray(_is_blank(texts)) for (texts,) in arrow_batches(dataset, [name]))
    elif pa.types.is_list(kind) and kind.value_type in _PLAIN_MESSAGES:
        yield from (_blank_lists(conversations) for (conversations,) in arrow_batches(dataset, [name]))
    else:
        decoded = dataset.with_format(None).select_columns([name])
        yield from (np.array([_says_nothing(side) for side in batch[name]]) for batch in decoded.iter(ROWS))


def _is_blank(texts: Any) -> Any:
    return pc.equal(pc.binary_length(pc.utf8_trim_whitespace(pc.fill_null(texts, ""))), 0)


def _blank_lists(conversations: Any) -> Flags:
    speaks = ~np.asarray(_is_blank(conversations.flatten().field("content")))
    speaking = np.concatenate([[0], np.cumsum(speaks)])
    ends = np.cumsum(np.asarray(pc.list_value_length(conversations)))
    silent: Flags = np.diff(speaking[np.concatenate([[0], ends])]) == 0
    return silent


def _says_nothing(completion: Any) -> bool:
    if isinstance(completion, str):
        return not completion.strip()
    return all(_message_says_nothing(message) for message in completion)


def _message_says_nothing(message: Mapping[str, Any]) -> bool:
    if any(value for key, value in message.items() if key not in ("role", "content")):
        return False
    content = message.get("content") or ""
    texts = [content] if isinstance(content, str) else [block.get("text") or "" for block in content]
    return not any(text.strip() for text in texts)
