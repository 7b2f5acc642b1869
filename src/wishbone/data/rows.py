"""Pairs stored as Arrow: prompt, chosen, rejected.

Rows are processed in batches, never all at once. Messages with only role and text get plain columns. Messages with more
(tool calls, content blocks) are stored as JSON, because in an Arrow table the keys of one row would appear, empty, in
all others.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa  # type: ignore[import-untyped]
from datasets import Dataset, Features, IterableDataset, Json, List, Value
from datasets.arrow_writer import ArrowWriter

from wishbone.data.kept import kept_dataset
from wishbone.data.message_forms import without_nulls
from wishbone.data.row_reader import NumberedRow, RowReader, RowRules
from wishbone.errors import RequestError, encodable

logger = logging.getLogger(__name__)

_NOTES = "notes.json"
_BATCH, _BATCH_WITH_IMAGES = 1000, 32


IMAGE: Any = {"bytes": Value("large_binary"), "path": Value("string"), "folder": Value("string")}
"""How an image is stored: the bytes of its file, or its path and the folder that the path may not leave."""


def store_rows(read: Callable[[], Iterator[NumberedRow]], name: str, rules: RowRules, *, state: str | None) -> Dataset:
    """Read, rewrite and store all rows; log what a person has to know of them, each time.

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
        buffer, notes = _write(read, name, rules, pa.BufferOutputStream)
        _tell(notes)
        return Dataset.from_buffer(buffer.getvalue())
    code = b"".join(module.read_bytes() for module in sorted(Path(__file__).parent.rglob("*.py")))
    key = hashlib.sha256(code + repr((state, name, rules)).encode("utf-8", "backslashreplace")).hexdigest()[:32]

    def keep(directory: Path) -> None:
        sink, notes = _write(read, name, rules, lambda: pa.OSFile(str(directory / "pairs.arrow"), "wb"))
        sink.close()
        (directory / _NOTES).write_text(json.dumps(notes), encoding="utf-8")

    kept = kept_dataset(f"pairs-{key}", keep)
    _tell(json.loads((Path(kept.cache_files[0]["filename"]).parent / _NOTES).read_text(encoding="utf-8")))
    return kept


def _tell(notes: Iterable[str]) -> None:
    for note in notes:
        logger.warning("%s", encodable(note))


def rewrite_stream(dataset: IterableDataset, name: str, rules: RowRules) -> IterableDataset:
    """The same for a stream: rows are rewritten when they are read, and rows that do not fit are reported per batch."""
    columns = dataset.column_names or list(next(iter(dataset), {}))
    if not columns:
        raise RequestError(f"{name} has no rows; give at least one preference pair")

    def rewrite(batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        rows = (
            dict(zip(batch, map(without_nulls, values), strict=True)) for values in zip(*batch.values(), strict=True)
        )
        numbered = ((i + 1, f"row {i + 1}", row) for i, row in zip(indices, rows, strict=True))
        reader = RowReader(name, rules, first=indices[0] == 0, partial=True)
        pairs = list(reader.read(numbered))
        _tell(reader.notes)
        names = dict.fromkeys(key for pair in pairs for key in pair)
        return {key: [pair.get(key) for pair in pairs] for key in names}

    return dataset.map(rewrite, with_indices=True, batched=True, batch_size=100, remove_columns=columns)


def _write(
    read: Callable[[], Iterator[NumberedRow]], name: str, rules: RowRules, open_sink: Callable[[], Any]
) -> tuple[Any, list[str]]:
    """Write all rows to a sink, start again with more columns if a row needs them; return the sink and the notes."""
    needed: frozenset[str] = frozenset()
    size = _BATCH_WITH_IMAGES if rules.how_images == "read" else _BATCH
    while True:
        reader = RowReader(name, rules)
        pairs = reader.read(read())
        first = list(islice(pairs, size))
        needed = needed.union(*map(_needs, first))
        features, sink = _features(needed), open_sink()
        with ArrowWriter(features=features, stream=sink) as writer:
            batches = chain([first], iter(lambda: list(islice(pairs, size)), []))  # noqa: B023
            for batch in batches:
                more = needed.union(*map(_needs, batch))
                if more != needed:
                    break
                writer.write_batch(_columns(batch, features))
            else:
                writer.finalize(close_stream=False)
                return sink, reader.notes
        sink.close()
        needed = more


def _needs(pair: Mapping[str, Any]) -> frozenset[str]:
    """What a row needs in the table: additional columns, and columns of another type than text."""
    needs = pair.keys() & {"tools", "chat_template_kwargs", "images"}
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
    extras = {"tools": Value("string"), "chat_template_kwargs": Json(), "images": List(IMAGE)}
    return Features(
        {"prompt": side, "chosen": side, "rejected": side, "source_row": Value("int64")}
        | {name: kind for name, kind in extras.items() if name in needed}
    )


def _columns(pairs: Sequence[Mapping[str, Any]], features: Features) -> dict[str, list[Any]]:
    columns = {name: [pair.get(name) for pair in pairs] for name in features}
    if "tools" in columns:
        columns["tools"] = [t if t is None or isinstance(t, str) else json.dumps(t) for t in columns["tools"]]
    if "images" in columns:
        columns["images"] = [images or [] for images in columns["images"]]
    if "chat_template_kwargs" in columns:
        columns["chat_template_kwargs"] = [given or {} for given in columns["chat_template_kwargs"]]
    return columns
