"""Load a data set of pairs from any source, as prompt, chosen, rejected.

file | directory | hub name | Dataset | stream | list of rows   ->   numbered rows   ->   prompt, chosen, rejected
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import datasets
import pyarrow as pa  # type: ignore[import-untyped]
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled  # type: ignore[attr-defined]

from wishbone.config.locate import refused_address
from wishbone.data import files
from wishbone.data.formats import PairRule, Pairs, columns_to_read
from wishbone.data.formats.recognize import Columns, check_columns
from wishbone.data.messages import kind
from wishbone.data.opened_files import ENDINGS
from wishbone.data.parquet_files import rows_of_batch
from wishbone.data.row_reader import InvalidRows, NumberedRow, RowRules
from wishbone.data.rows import rewrite_stream, store_rows
from wishbone.errors import RequestError, one_line
from wishbone.paths import user_path

Rows = Sequence[Mapping[str, Any]]
Source: TypeAlias = str | Path | Dataset | DatasetDict | IterableDataset | IterableDatasetDict | Rows

_ID_COLUMNS = {"prompt_ids", "chosen_ids", "rejected_ids"}
_BATCH = 1000
_TIMEOUT_SECONDS = 5.0
_UNREACHABLE = (
    "the hub cannot be reached, where it may be a data set ({}). Correct the path, or download the data set on a "
    "machine with a network and give its directory"
)
_NOT_AS_SAVED = (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, pa.ArrowException)
"""Errors that `datasets` raises if the files of a saved data set were changed."""


def load_pairs(
    source: Source,
    *,
    split: str = "train",
    invalid_rows: InvalidRows = "refuse",
    system_prompt: str | None = None,
    columns: Columns | None = None,
    pairs: Pairs = "best_worst",
    least_margin: float = 0.0,
    turns: bool = False,
    images: Literal["refuse", "read"] = "refuse",
) -> Dataset | IterableDataset:
    """Load rows and rewrite them as pairs, as `wishbone.data.formats.read_pairs` describes.

    Args:
        source: a file (.jsonl, .json, .csv, .parquet; .gz, .zst, .xz), a directory of such files or one written by
            `Dataset.save_to_disk`, the name of a data set on the hub (`name` or `name:configuration`), a `datasets`
            object, or a list of rows.
        split: of a directory, hub data set or `DatasetDict`; other sources have only one split.
        invalid_rows: "refuse" raises if rows do not fit, "drop" drops them and logs how many.
        system_prompt: added before every conversation that has no system message.
        columns: the name of a column in the data for Wishbone's name; None for a column that is not read.
        pairs: which completions of a row with scores or ranks become pairs: "best_worst", "best_rest" or "all".
        least_margin: least difference of the scores of such a pair; equal scores are never a pair.
        turns: whether texts with a prompt become messages, one user turn and one answer.
        images: "read" keeps the images of prompts in a column, "refuse" is a problem of their rows; `columns` with None
            for `images` leaves them out. Paths begin at the folder of a file, or at the directory, and stay inside.

    Returns:
        A `Dataset` with columns prompt, chosen, rejected (texts or lists of messages), `source_row` (int64: the line of
        a JSON lines file, otherwise the row, from 1; the same for all pairs of a row) and, if rows have them, tools
        (JSON text), chat_template_kwargs and images (a list of `rows.IMAGE`). For a stream (`IterableDataset`) a
        stream, whose rows are checked when they are read. A data set that already has token ids is returned with
        `source_row` added.

    Raises:
        RequestError: the source cannot be read, has no preference pairs, or has rows that do not fit (the first ten by
            line or row, and how many there are).
    """
    check_columns(columns or {})
    rules = RowRules(
        invalid_rows,
        system_prompt,
        dict(columns or {}),
        PairRule(pairs, least_margin),
        turns,
        images,
        folder_of(source),
    )
    found = _find(source, split)
    if isinstance(found, IterableDataset):
        return rewrite_stream(found, "the stream", rules)
    if isinstance(found, Dataset):
        if set(found.column_names) >= _ID_COLUMNS:
            numbered = "source_row" in found.column_names
            return found if numbered else found.add_column("source_row", list(range(1, len(found) + 1)))
        name = str(source) if isinstance(source, str | Path) else "the data set"
        stored = [Path(file["filename"]) for file in found.cache_files]
        state = f"{found._fingerprint} {_state(stored)}" if stored else None
        return store_rows(partial(_rows_of_dataset, found, rules.columns), name, rules, state=state)
    if isinstance(found, _Files):
        state = _state(found.paths)
        return store_rows(partial(files.read_rows, found.paths, rules.columns), str(source), rules, state=state)
    return store_rows(partial(_rows_of_list, found), "the list of rows", rules, state=None)


def open_rows(
    source: str | Path, *, split: str = "train", columns: Columns | None = None
) -> tuple[str, Callable[[], Iterator[NumberedRow]]]:
    """Return the name of a source, and a function that starts reading its rows as they are.

    Args:
        source: a file, a directory or the name of a data set on the hub, as for `load_pairs`.
        split: of a directory or hub data set.
        columns: `data.columns`, which tables are read with.

    Raises:
        RequestError: there is no such source, it has no such split, or no layout reads such columns.
    """
    check_columns(columns or {})
    found = _find(source, split)
    if isinstance(found, Dataset):
        return str(source), partial(_rows_of_dataset, found, columns)
    if isinstance(found, _Files):
        return str(source), partial(files.read_rows, found.paths, columns)
    raise RequestError(f"'{source}' is a stream, whose rows can be read only once; download it as files")


def folder_of(source: Source) -> str | None:
    """Return the folder at which paths of a source's images begin; None for rows in memory, which name any.

    Of a data set on the hub that is an empty folder's name: it holds images as bytes, and its paths lead nowhere here.
    """
    if not isinstance(source, str | Path):
        return None
    path = user_path(source)
    if not path.exists():
        return ""
    return str((path if path.is_dir() else path.parent).absolute())


@dataclass(frozen=True)
class _Files:
    paths: list[Path]


def _state(paths: list[Path]) -> str:
    """Names, sizes and times of files; the content counts as unchanged as long as these are.

    The time of a file's last change can be set (`cp -p`, `rsync -t`), that of its entry on the disk cannot.
    """
    facts = [(str(p.resolve()), p.stat()) for p in paths]
    return json.dumps([(name, of.st_size, of.st_mtime_ns, of.st_ctime_ns) for name, of in facts])


def _find(source: Source, split: str) -> Dataset | IterableDataset | _Files | Rows:
    if isinstance(source, dict):
        if split not in source:
            raise RequestError(f"the data set has no split '{split}'; its splits: {', '.join(map(str, source))}")
        return source[split]  # type: ignore[no-any-return]
    if isinstance(source, Dataset | IterableDataset | list | tuple):
        return source
    if not isinstance(source, str | Path):
        raise RequestError(
            f"a {type(source).__name__} is not a source of pairs; give a path, a hub name, a Dataset or rows"
        )
    if isinstance(source, str) and (refusal := refused_address(source)):
        raise RequestError(refusal)
    path = user_path(source)
    if any((path / written).exists() for written in ("dataset_dict.json", "dataset_info.json")):
        return _find(_load_saved(path), split)
    if path.exists() or isinstance(source, Path) or _spells_a_path(source):
        return _Files(files.data_files(path, split))
    return _load_from_hub(source, split)


def _spells_a_path(source: str) -> bool:
    endings = (".json", ".jsonl", ".ndjson", ".csv", ".parquet", ".arrow", ".txt", ".tsv", *ENDINGS, os.sep)
    return source.startswith((".", "~", os.sep)) or source.count("/") > 1 or source.endswith(endings)


def _load_saved(path: Path) -> Dataset | DatasetDict:
    try:
        found = datasets.load_from_disk(path)
        for part in found.values() if isinstance(found, DatasetDict) else [found]:
            part.data.validate(full=True)  # offsets that point outside of a damaged file would end the process
    except _NOT_AS_SAVED as error:
        raise RequestError(
            f"{path}: is not a complete data set of save_to_disk ({one_line(error)}); save it again"
        ) from None
    return found


def _load_from_hub(name: str, split: str) -> Dataset:
    repository, _, configuration = name.partition(":")
    here = f"'{name}' is not a file or directory here{files.similar_names(Path(name))}"
    reason = _no_answer(repository)
    kept = Path(datasets.config.HF_DATASETS_CACHE) / repository.replace("/", "___")
    if reason is not None and not kept.is_dir():
        raise RequestError(f"{here}, and {_UNREACHABLE.format(reason)}")
    try:
        return datasets.load_dataset(repository, configuration or None, split=split)
    except ConnectionError as error:
        raise RequestError(f"{here}, and {_UNREACHABLE.format(error)}") from None
    except (FileNotFoundError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RequestError(f"{here}, and it cannot be loaded from the hub (split '{split}'): {reason}") from None


def _no_answer(repository: str) -> str | None:
    """Why the hub does not answer, or None. It is asked once: its client repeats each request for half a minute."""
    try:
        HfApi().dataset_info(repository, timeout=_TIMEOUT_SECONDS)
    except (HfHubHTTPError, OfflineModeIsEnabled, ValueError):  # an answer, or a word of `datasets` of its own
        return None
    except HTTPError as error:
        return one_line(error)
    return None


def _rows_of_dataset(dataset: Dataset, columns: Columns | None = None) -> Iterator[NumberedRow]:
    number = 0
    names = columns_to_read(dataset.column_names, columns)
    others = [name for name in dataset.column_names if name not in names]
    for table in dataset.select_columns(names).with_format("arrow").iter(_BATCH):
        for batch in table.to_batches():
            for row in rows_of_batch(batch, others):
                number += 1
                yield number, f"row {number}", row


def _rows_of_list(rows: Rows) -> Iterator[NumberedRow]:
    for number, row in enumerate(rows, 1):
        is_row = isinstance(row, Mapping)
        yield (
            number,
            f"row {number}",
            row if is_row else RequestError(f"is {kind(row)}, not an object with named fields"),
        )
