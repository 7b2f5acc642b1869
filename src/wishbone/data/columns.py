"""Columns of a data set as NumPy arrays, without a Python object for every token or message."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
from datasets import Dataset

Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class IdColumn:
    """A column of lists of token ids; `column[row]` is a view of the ids of one row.

    Attributes:
        lengths: [rows], int64: tokens of each row.
    """

    def __init__(self, dataset: Dataset, name: str) -> None:
        chunks = _chunks(dataset, name)
        lengths = [np.asarray(pc.list_value_length(chunk), dtype=np.int64) for chunk in chunks]
        self.lengths: Counts = np.concatenate(lengths)
        self._values = [np.asarray(chunk.flatten()) for chunk in chunks]
        self._first_rows = np.cumsum([0, *map(len, lengths)])
        self._ends = [np.cumsum(counts) for counts in lengths]

    def __getitem__(self, row: int) -> npt.NDArray[np.integer[Any]]:
        chunk = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        end = self._ends[chunk][row - self._first_rows[chunk]]
        return self._values[chunk][end - self.lengths[row] : end]

    def digests(self) -> Iterator[bytes]:
        """A 16-byte fingerprint of each row, in order; equal for equal ids."""
        for values, ends in zip(self._values, self._ends, strict=True):
            ids = np.ascontiguousarray(values, dtype=np.int32)
            for start, end in pairwise([0, *ends.tolist()]):
                yield blake2b(ids[start:end].data, digest_size=16).digest()


def blank_completions(dataset: Dataset, name: str) -> Flags:
    """Rows of a column of texts or lists of messages that are blank; none if there is no such column.

    A message is blank if its content is white space and it has no other keys (such as tool_calls).
    """
    if name not in dataset.column_names:
        return np.zeros(len(dataset), dtype=bool)
    chunks = _chunks(dataset, name)
    kind = chunks[0].type
    if pa.types.is_string(kind):
        return np.concatenate([np.asarray(_is_blank(chunk)) for chunk in chunks])
    if pa.types.is_list(kind) and kind.value_type in _PLAIN_MESSAGES:
        return np.concatenate([_blank_lists(chunk) for chunk in chunks])
    decoded = dataset.with_format(None).select_columns([name])
    return np.array([_says_nothing(row[name]) for row in decoded], dtype=bool)


_ROLE, _CONTENT = pa.field("role", pa.string()), pa.field("content", pa.string())
_PLAIN_MESSAGES = (pa.struct([_ROLE, _CONTENT]), pa.struct([_CONTENT, _ROLE]))


def _chunks(dataset: Dataset, name: str) -> list[Any]:
    """The column as Arrow arrays of many rows each. A shuffled data set has one array per row; those are joined."""
    chunks = [chunk for chunk in dataset.select_columns([name]).with_format("arrow")[:][name].chunks if len(chunk)]
    if len(chunks) * 10 < len(dataset):
        return chunks
    return [pa.concat_arrays(chunks[i : i + 1000]) for i in range(0, len(chunks), 1000)]


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
