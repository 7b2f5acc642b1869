"""Numbered rows of any layout, rewritten as prompt, chosen, rejected, and stored as Arrow.

Rows are processed in batches, never all at once. All rows that do not fit are reported together, each with its place.
Messages with only role and text get plain columns. Messages with more (tool calls, content blocks) are stored as JSON,
because in an Arrow table the keys of one row would appear, empty, in all others.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import datasets
import pyarrow as pa  # type: ignore[import-untyped]
from datasets import Dataset, Features, IterableDataset, Json, List, Value
from datasets.arrow_writer import ArrowWriter

from wishbone.data import formats, messages
from wishbone.data.formats import normalize, recognize
from wishbone.data.kept import kept_dataset
from wishbone.errors import RequestError

logger = logging.getLogger(__name__)

NumberedRow = tuple[int, str, Any]  # number, place, and the row, or a RequestError if it cannot be read
InvalidRows = Literal["refuse", "drop"]

_BATCH = 1000
_GIVEN_UP_AFTER = 100


class MalformedRows(RequestError):
    """Some rows of a source do not fit its layout, and others do."""


@dataclass(frozen=True)
class RowRules:
    """How rows are rewritten.

    Attributes:
        invalid_rows: what happens to rows that do not fit: "refuse" raises, "drop" drops them.
        system_prompt: added before every conversation that has no system message.
        layout: a key of `formats.FORMATS`; None: the layout of the first row that has one.
    """

    invalid_rows: InvalidRows = "refuse"
    system_prompt: str | None = None
    layout: str | None = None


def listed(lines: Sequence[str], *, total: int | None = None, shown: int = 10) -> str:
    """The first lines, one below the other, and the number of the others."""
    total = len(lines) if total is None else total
    more = [f"... and {total - shown} more"] if total > shown else []
    return "".join(f"\n  {line}" for line in [*lines[:shown], *more])


class RowReader:
    """Rewrites the rows of one source and collects those that do not fit."""

    def __init__(self, name: str, rules: RowRules) -> None:
        self.name = name
        self.rules = rules
        self.layout = rules.layout
        self._unrecognized: list[RequestError] = []
        self._misfits: list[str] = []
        self._total = 0

    def read(self, rows: Iterable[NumberedRow]) -> Iterator[dict[str, Any]]:
        """The rows that fit, as `normalize` returns them, with `source_row`.

        Raises:
            RequestError: after the last row, if there were no rows, none with a known layout, rows that do not fit
                (unless they are dropped), or only such rows.
        """
        for number, place, row in rows:
            self._total += 1
            try:
                if isinstance(row, RequestError):
                    raise row
                if self.layout is None:
                    self.layout = self._recognized(row)
                pair = normalize(row, self.layout, system_prompt=self.rules.system_prompt)
            except RequestError as misfit:
                self._misfits.append(f"{place} {'; '.join(misfit.problems)}" if len(self._misfits) < 10 else "")
                if self.layout is None and len(self._unrecognized) == _GIVEN_UP_AFTER:
                    break
            else:
                yield pair | {"source_row": number}
        self._finish()

    def _recognized(self, row: Mapping[str, Any]) -> str:
        try:
            return recognize(row)
        except RequestError as error:
            self._unrecognized.append(error)
            raise RequestError(f"has columns of no known layout: {', '.join(map(str, row))[:80]}") from None

    def _finish(self) -> None:
        misfits = len(self._misfits)
        if self._total == 0:
            raise RequestError(f"{self.name} has no rows; give at least one preference pair")
        if self.layout is None and self._unrecognized:
            raise RequestError(f"{self.name}: {self._unrecognized[0]}")
        if misfits and (self.rules.invalid_rows == "refuse" or misfits == self._total):
            layout = f", read as '{formats.FORMATS[self.layout]}'" if self.layout else ""
            remedy = (
                "Correct them, or set data.invalid_rows: drop to train without them"
                if misfits < self._total
                else "Correct them"
            )
            kind = MalformedRows if misfits < self._total else RequestError
            raise kind(
                f"{self.name}{layout}: {misfits} of {self._total} rows do not fit. {remedy}.{listed(self._misfits)}"
            )
        if misfits:
            logger.warning(
                "%s: %d of %d rows do not fit and are dropped:%s",
                self.name,
                misfits,
                self._total,
                listed(self._misfits),
            )


def store_rows(read: Callable[[], Iterator[NumberedRow]], name: str, rules: RowRules, *, state: str | None) -> Dataset:
    """Read, rewrite and store all rows.

    Args:
        read: starts reading at the first row; called again if later rows need more columns than the first ones.
        name: of the source, for messages.
        rules: how rows are rewritten.
        state: text that changes when the rows change. With it the result is kept in the cache of `datasets` and used
            again; None keeps it in memory.

    Raises:
        RequestError: as `RowReader`.
    """
    if state is None or not datasets.is_caching_enabled():
        buffer = _write(read, name, rules, pa.BufferOutputStream)
        return Dataset.from_buffer(buffer.getvalue())
    code = b"".join(Path(file).read_bytes() for file in (formats.__file__, messages.__file__, __file__) if file)
    key = hashlib.sha256(code + repr((state, rules)).encode()).hexdigest()[:32]
    return kept_dataset(
        f"pairs-{key}",
        lambda directory: _write(read, name, rules, lambda: pa.OSFile(str(directory / "pairs.arrow"), "wb")).close(),
    )


def rewrite_stream(dataset: IterableDataset, name: str, rules: RowRules) -> IterableDataset:
    """The same for a stream: rows are rewritten when they are read, and rows that do not fit are reported per batch."""
    columns = dataset.column_names or list(next(iter(dataset), {}))
    if not columns:
        raise RequestError(f"{name} has no rows; give at least one preference pair")

    def rewrite(batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        rows = (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))
        numbered = ((i + 1, f"row {i + 1}", row) for i, row in zip(indices, rows, strict=True))
        pairs = list(RowReader(name, rules).read(numbered))
        names = dict.fromkeys(key for pair in pairs for key in pair)
        return {key: [pair.get(key) for pair in pairs] for key in names}

    return dataset.map(rewrite, with_indices=True, batched=True, batch_size=100, remove_columns=columns)


def _write(read: Callable[[], Iterator[NumberedRow]], name: str, rules: RowRules, open_sink: Callable[[], Any]) -> Any:
    """Write all rows to a sink; start again with more columns if a row needs them."""
    needed: frozenset[str] = frozenset()
    while True:
        pairs = RowReader(name, rules).read(read())
        first = list(islice(pairs, _BATCH))
        needed = needed.union(*map(_needs, first))
        features, sink = _features(needed), open_sink()
        with ArrowWriter(features=features, stream=sink) as writer:
            batches = chain([first], iter(lambda: list(islice(pairs, _BATCH)), []))  # noqa: B023
            for batch in batches:
                more = needed.union(*map(_needs, batch))
                if more != needed:
                    break
                writer.write_batch(_columns(batch, features))
            else:
                writer.finalize(close_stream=False)
                return sink
        sink.close()
        needed = more


def _needs(pair: Mapping[str, Any]) -> frozenset[str]:
    """What a row needs in the table: additional columns, and columns of another type than text."""
    needs = pair.keys() & {"tools", "chat_template_kwargs"}
    if isinstance(pair["prompt"], list):
        said = chain(pair["prompt"], pair["chosen"], pair["rejected"])
        plain = all(len(message) == 2 and isinstance(message.get("content"), str) for message in said)
        needs.add("messages" if plain else "messages with more than text")
    return frozenset(needs)


def _features(needed: frozenset[str]) -> Features:
    side: Any = Value("string")
    if "messages" in needed:
        side = List({"role": Value("string"), "content": Value("string")})
    if "messages with more than text" in needed:
        side = List(Json())
    extras = {"tools": Value("string"), "chat_template_kwargs": Json()}
    return Features(
        {"prompt": side, "chosen": side, "rejected": side, "source_row": Value("int64")}
        | {name: kind for name, kind in extras.items() if name in needed}
    )


def _columns(pairs: Sequence[Mapping[str, Any]], features: Features) -> dict[str, list[Any]]:
    columns = {name: [pair.get(name) for pair in pairs] for name in features}
    if "tools" in columns:
        columns["tools"] = [t if t is None or isinstance(t, str) else json.dumps(t) for t in columns["tools"]]
    if "chat_template_kwargs" in columns:
        columns["chat_template_kwargs"] = [given or {} for given in columns["chat_template_kwargs"]]
    return columns
