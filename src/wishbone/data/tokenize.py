"""Pairs as token ids: prompt, chosen, rejected, exactly as TRL's `DPOTrainer` computes them, in batches.

The ids of joined texts are not always the joined ids, so a pair is tokenized three times: the prompt alone (with the
header that opens the reply), the prompt with the chosen reply, the prompt with the rejected one. The completions begin
where the three differ:

    n        = length of the longest common prefix of ids(prompt), ids(prompt + chosen), ids(prompt + rejected)
    prompt   = ids(prompt)[:n]      chosen = ids(prompt + chosen)[n:]      rejected = ids(prompt + rejected)[n:]
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from functools import partial
from typing import Any, TypeVar

import datasets
import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import tokenizers
import transformers
from datasets import Dataset, IterableDataset, concatenate_datasets
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from wishbone.data.chat_template import REFUSALS
from wishbone.data.encoding import Ids, encode_conversations, encode_texts
from wishbone.data.formats import common_prompt
from wishbone.data.kept import kept_dataset
from wishbone.errors import RequestError, one_line

logger = logging.getLogger(__name__)

AnyDataset = TypeVar("AnyDataset", Dataset, IterableDataset)
IdTriple = tuple[Ids, Ids, Ids]
Pair = tuple[Any, Any, Any]  # prompt, chosen, rejected: texts or lists of messages

ID_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
CUT_COLUMN = "prompt_cut"
_INPUTS = ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs", "source_row")
_SHOWN = 10


def tokenize_pairs(
    dataset: AnyDataset, tokenizer: PreTrainedTokenizerBase, *, num_proc: int | None = None
) -> AnyDataset:
    """Add `prompt_ids`, `chosen_ids`, `rejected_ids` to a data set of pairs, as TRL's `DPOTrainer` tokenizes them.

    Messages go through the chat template (with `tools` and `chat_template_kwargs` of the row); texts get the
    end-of-sequence token if they do not end with it. Without a prompt column, the prompt is the common beginning of
    both completions. Unlike in TRL, a text that begins with the beginning-of-sequence token gets no second one.

    A data set on disk is tokenized once: the result is kept in the cache, under the fingerprint of data, tokenizer and
    template. A stream is tokenized when it is read. A data set that already has the columns is returned unchanged.

    Args:
        dataset: columns chosen, rejected and usually prompt (texts or messages); optional tools, chat_template_kwargs.
        tokenizer: of the model to train.
        num_proc: processes for a `Dataset`; None: this process, with all cores if the tokenizer is a fast one.

    Returns:
        The data set with int32 lists `prompt_ids`, `chosen_ids`, `rejected_ids` and int32 `prompt_cut`: how many tokens
        the prompt alone has beyond the prompt that it shares with the completions (rarely above 0; gives a warning).

    Raises:
        RequestError: there are no rows, messages but no chat template, texts but no end-of-sequence token, or rows that
            are neither texts nor messages or that the template refuses.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise RequestError(f"{type(tokenizer).__name__} is not a tokenizer; pass a tokenizer, or that of a processor")
    columns = dataset.column_names or list(next(iter(dataset), {}))
    if set(ID_COLUMNS) <= set(columns):
        return dataset
    if isinstance(dataset, IterableDataset):
        return dataset.map(partial(_tokenize_stream, tokenizer), with_indices=True, batched=True, batch_size=256)
    if len(dataset) == 0:
        raise RequestError("the data set has no rows; there is nothing to tokenize")
    dataset = dataset.with_format(None).remove_columns([c for c in (*ID_COLUMNS, CUT_COLUMN) if c in columns])
    inputs = dataset.select_columns([c for c in _INPUTS if c in columns])
    fingerprint = Hasher.hash((inputs._fingerprint, _identity(tokenizer)))
    encode = partial(
        inputs.map,
        partial(_tokenize_table, tokenizer),
        with_indices=True,
        batched=True,
        remove_columns=inputs.column_names,
        num_proc=num_proc,
        new_fingerprint=fingerprint,
        desc="Tokenizing",
    )
    if inputs.cache_files and datasets.is_caching_enabled():
        ids = kept_dataset(f"ids-{fingerprint}", lambda directory: encode(cache_file_name=f"{directory}/ids.arrow"))
    else:
        ids = encode()
    _warn_of_cut_prompts(ids.with_format("numpy")[CUT_COLUMN][:])
    return concatenate_datasets([dataset, ids], axis=1)


def _identity(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    """Everything that the ids depend on, with the date for templates that print it."""
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        # Truncation and padding come first in the JSON; the ids do not depend on them, and calls change them.
        state = tokenizer.backend_tokenizer.to_str().partition('"added_tokens"')[2]
    else:
        state = Hasher.hash(tokenizer)
    template = str(tokenizer.chat_template)
    return (
        type(tokenizer).__qualname__,
        state,
        template,
        date.today().isoformat() if "strftime_now" in template else "",
        sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items()),
        tokenizer.split_special_tokens,
        transformers.__version__,
        tokenizers.__version__,
    )


def _tokenize_table(tokenizer: PreTrainedTokenizerBase, batch: Mapping[str, Any], indices: list[int]) -> pa.Table:
    ids = tokenize_batch(tokenizer, batch, indices)
    types = {name: pa.list_(pa.int32()) for name in ID_COLUMNS} | {CUT_COLUMN: pa.int32()}
    return pa.table({name: pa.array(ids[name], kind) for name, kind in types.items()})


def _tokenize_stream(
    tokenizer: PreTrainedTokenizerBase, batch: Mapping[str, Any], indices: list[int]
) -> dict[str, list[Any]]:
    ids = tokenize_batch(tokenizer, batch, indices)
    if indices[0] == 0:
        _warn_of_cut_prompts(np.array(ids[CUT_COLUMN]))
    return ids


def _warn_of_cut_prompts(cut: np.ndarray[Any, Any]) -> None:
    if rows := int(np.count_nonzero(cut)):
        logger.warning(
            "In %d of %d rows the tokenized prompt + completion does not begin with the tokenized prompt: the chat "
            "template writes the prompt differently without a completion, or a token spans both. The completion begins "
            "where they differ, which moves up to %d tokens of the prompt's end into it. To avoid this, use a template "
            "that writes the prompt the same way in both cases, or end the prompt where a token ends.",
            rows,
            len(cut),
            cut.max(),
        )


def tokenize_batch(
    tokenizer: PreTrainedTokenizerBase, batch: Mapping[str, Any], indices: list[int]
) -> dict[str, list[Any]]:
    """The columns that `tokenize_pairs` adds, for some rows that need not be in a table.

    Args:
        tokenizer: of the model.
        batch: prompt, chosen, rejected and whatever else `tokenize_pairs` reads, each a list of values.
        indices: of the rows, for messages where there is no `source_row`.

    Raises:
        RequestError: as `tokenize_pairs`; a row that the template refuses is named "row N: ...".
    """
    numbers: list[int] = list(batch["source_row"]) if "source_row" in batch else [i + 1 for i in indices]
    pairs = _pairs(batch, numbers)
    nothing = [None] * len(pairs)
    tools, kwargs = batch.get("tools", nothing), batch.get("chat_template_kwargs", nothing)
    alike: defaultdict[str, list[int]] = defaultdict(list)  # rows of text, and rows of chat with the same settings
    for row, (prompt, _, _) in enumerate(pairs):
        alike["" if isinstance(prompt, str) else json.dumps((tools[row], kwargs[row]), default=repr)].append(row)
    triples: dict[int, IdTriple] = {}
    for settings, rows in alike.items():
        members = [pairs[row] for row in rows]
        if settings:
            named = [numbers[row] for row in rows]
            encoded = _encode_chats(tokenizer, members, named, tools=tools[rows[0]], template_kwargs=kwargs[rows[0]])
        else:
            encoded = _encode_texts(tokenizer, members)
        triples |= zip(rows, encoded, strict=True)
    columns: dict[str, list[Any]] = {name: [] for name in (*ID_COLUMNS, CUT_COLUMN)}
    for row in range(len(pairs)):
        prompt, with_chosen, with_rejected = triples[row]
        shared = min(_common_length(prompt, with_chosen), _common_length(prompt, with_rejected))
        divided = prompt[:shared], with_chosen[shared:], with_rejected[shared:], len(prompt) - shared
        for column, value in zip(columns.values(), divided, strict=True):
            column.append(value)
    return columns


def _pairs(batch: Mapping[str, Any], numbers: Sequence[int]) -> list[Pair]:
    sides = zip(batch["chosen"], batch["rejected"], strict=True)
    if "prompt" in batch:
        pairs = [(prompt, *side) for prompt, side in zip(batch["prompt"], sides, strict=True)]
    else:
        pairs = [common_prompt(*side) if all(side) else (None, *side) for side in sides]
    _refuse_rows(
        f"row {number}: prompt, chosen, rejected must be three texts or three lists of messages, but are "
        f"{', '.join(type(field).__name__ for field in pair)}; load_pairs rewrites other layouts this way"
        for number, pair in zip(numbers, pairs, strict=True)
        if set(map(type, pair)) not in ({str}, {list})
    )
    return pairs


def _encode_texts(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> list[IdTriple]:
    end, begin = tokenizer.eos_token, tokenizer.bos_token_id
    if end is None:
        raise RequestError("the tokenizer has no end-of-sequence token for the completions; set tokenizer.eos_token")
    ended = [(p, p + c.removesuffix(end) + end, p + r.removesuffix(end) + end) for p, c, r in pairs]
    ids = encode_texts(tokenizer, [text for triple in ended for text in triple], add_special_tokens=True)
    if begin is not None:
        ids = [row[1:] if row[:2] == [begin, begin] else row for row in ids]
    return list(zip(ids[::3], ids[1::3], ids[2::3], strict=True))


def _encode_chats(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    numbers: Sequence[int],
    *,
    tools: str | list[Any] | None,
    template_kwargs: dict[str, Any] | None,
) -> list[IdTriple]:
    def encode(some: Sequence[Pair]) -> list[IdTriple]:
        whole = [prompt + chosen for prompt, chosen, _ in some] + [prompt + rejected for prompt, _, rejected in some]
        prompts, ids = encode_conversations(
            tokenizer,
            [prompt for prompt, _, _ in some],
            whole,
            tools=json.loads(tools) if isinstance(tools, str) else tools,
            template_kwargs=template_kwargs,
        )
        return list(zip(prompts, ids[: len(some)], ids[len(some) :], strict=True))

    try:
        return encode(pairs)
    except RequestError:
        raise
    except REFUSALS:
        problems = []
        for number, pair in zip(numbers, pairs, strict=True):
            try:
                encode([pair])
            except RequestError:
                raise
            except REFUSALS as refusal:
                problems.append(f"row {number}: the chat template refuses it: {one_line(refusal)}")
        _refuse_rows(problems)
        raise


def _refuse_rows(problems: Iterable[str]) -> None:
    if found := list(problems):
        raise RequestError(found[:_SHOWN] + [f"... and {len(found) - _SHOWN} more rows"] * (len(found) > _SHOWN))


def _common_length(ids: Ids, others: Ids) -> int:
    if others[: len(ids)] == ids:
        return len(ids)
    return next((i for i, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b), min(len(ids), len(others)))
