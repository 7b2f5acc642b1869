"""Where the sequences lie in a packed row.

A row is a list of documents. A document has one stem and any number of branches, laid out one after the other:

    [ stem | branch 0 | branch 1 | ... ][ stem | branch 0 | ... ] ...

Each branch continues the stem, so a token sees the stem and the past of its own branch, never a sibling branch and
never another document:

    visible(q, k) = k <= q  and  document(q) == document(k)  and  (k in stem  or  branch(q) == branch(k))
                  = k <= q < until(k)

where until(k) is the end of k's document if k is in the stem, else the end of its branch. A sliding window w also asks
for position(q) - position(k) < w, where every branch counts its positions from the end of the stem. A plain sequence is
a document with a stem and no branches.

Tokens of a stem may stand together: all of a span [a, b) see each other, as those of an image do in Gemma 3. Then
since(k) <= q takes the place of k <= q, where since(k) is a for k in such a span, and k elsewhere. In some families
(Gemma 4) this holds only in layers with a window.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import UserDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wishbone.ops.to_device import to_device

SLICED = "sliced by document"
"""Key of the mark that `PrefixLayout.mark_as_sliced` leaves."""


@dataclass(frozen=True)
class Document:
    """Row offsets of one document: `start <= stem_end <= branch_ends[0] <= branch_ends[1] ...` (tokens)."""

    start: int
    stem_end: int
    branch_ends: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        """Offset after the last token of the document."""
        return self.branch_ends[-1] if self.branch_ends else self.stem_end

    def branches(self) -> Iterator[tuple[int, int]]:
        """Yield `(start, end)` of each branch."""
        return pairwise((self.stem_end, *self.branch_ends))


@dataclass(frozen=True)
class PrefixLayout:
    """The documents of one row, in order and without gaps from token 0 to the row's end.

    Its tables are kept in something that is no `dict`, because FSDP copies those that it finds in arguments.

    Attributes:
        documents: stems with their branches.
        together: spans of tokens that all see each other, each within a stem.
        together_with_window: whether they do so only in layers with a sliding window.
        room: documents, each of two branches, that tables of segments have room for; 0 for those of this row.

    Raises:
        ValueError: if the documents leave a gap, overlap, or run backwards, or a span is in no stem.
    """

    documents: tuple[Document, ...]
    together: tuple[tuple[int, int], ...] = ()
    together_with_window: bool = False
    room: int = field(default=0, compare=False)
    _cache: UserDict[object, object] = field(default_factory=UserDict, compare=False, repr=False)

    def __post_init__(self) -> None:
        expected = 0
        for document in self.documents:
            offsets = (document.start, document.stem_end, *document.branch_ends)
            if document.start != expected or any(a > b for a, b in pairwise(offsets)):
                raise ValueError(f"document offsets {offsets} do not continue the row at token {expected}")
            expected = document.end
        for span in self.together:
            if not any(d.start <= span[0] < span[1] <= d.stem_end for d in self.documents):
                raise ValueError(f"tokens {span} that see each other lie in no stem")

    def spans(self, window: int | None) -> tuple[tuple[int, int], ...]:
        """Return the spans of tokens that see each other in a layer with this window."""
        return () if self.together_with_window and window is None else self.together

    @property
    def length(self) -> int:
        """Tokens in the row."""
        return self.documents[-1].end if self.documents else 0

    def with_room(self, documents: int) -> PrefixLayout:
        """Return the same layout, without tables so far, which will have room for so many documents."""
        return replace(self, room=max(documents, len(self.documents)), _cache=UserDict())

    def segments(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield `(start, end, stem_start, stem_end)` of every stem and branch; the stem of a stem is empty."""
        for document in self.documents:
            yield document.start, document.stem_end, document.start, document.start
            for start, end in document.branches():
                yield start, end, document.start, document.stem_end

    def token_tables(self, device: torch.device) -> TokenTables:
        """Return `until` and `position` of every token as tensors on `device`, built once."""
        key = ("token_tables", device)
        if key not in self._cache:
            rows: list[tuple[int, int, int]] = []
            for document in self.documents:
                rows.append((document.stem_end - document.start, document.end, -document.start))
                rows += [
                    (end - start, end, document.stem_end - document.start - start) for start, end in document.branches()
                ]
            counts, *values = np.array(rows, dtype=np.int32).reshape(-1, 3).T
            tables = np.stack(values).repeat(counts, axis=1)
            tables[1] += np.arange(self.length, dtype=np.int32)
            self._cache[key] = TokenTables(to_device(torch.from_numpy(tables), device))
        tables_on_device = self._cache[key]
        assert isinstance(tables_on_device, TokenTables)
        return tables_on_device

    def mark_as_sliced(self) -> None:
        """Note that the row was cut at its documents on the host, so a CUDA graph of it fits no other row."""
        self._cache[SLICED] = True

    def visible(self, query: Tensor, key: Tensor, tables: TokenTables, window: int | None) -> Tensor:
        """Return whether token `query` sees token `key`: the rule of this module on index tensors that broadcast."""
        since = torch.arange(self.length, device=query.device)
        for start, end in self.spans(window):
            since[start:end] = start
        seen = (since[key] <= query) & (query < tables.until[key])
        if window is None:
            return seen
        return seen & (tables.position[query] - tables.position[key] < window)


@dataclass(frozen=True)
class HostTables:
    """Keys of tables in host memory, which no kernel reads."""


class RowTables(ABC):
    """Tables of a row that kernels read, kept in the cache of its layout. Those of another row can take their place."""

    def holds(self, source: PrefixLayout) -> bool:
        """Return whether the tables of a row of this length fit here."""
        return True

    @abstractmethod
    def overwrite(self, kind: Any, source: PrefixLayout) -> None:
        """Write the tables of a row over these; `kind` is their key in the cache."""


@dataclass(frozen=True)
class TokenTables(RowTables):
    """For each token of a row, where it stops being visible and its position in its sequence.

    Attributes:
        buffer: [2, tokens], int32: the two tables that the properties name.
    """

    buffer: Tensor

    @property
    def until(self) -> Tensor:
        """[tokens]: the first token of the row that no longer sees this one."""
        return self.buffer[0]

    @property
    def position(self) -> Tensor:
        """[tokens]: the position in the sequence of stem and branch, from 0."""
        return self.buffer[1]

    def overwrite(self, kind: Any, source: PrefixLayout) -> None:  # noqa: D102
        self.buffer.copy_(source.token_tables(self.buffer.device).buffer)
