"""Pairs as token ids: prompt, chosen, rejected, exactly as TRL's `DPOTrainer` would make them, a batch at a time.

A tokenizer does not commute with concatenation, so a pair is tokenized three times: the prompt alone (with the header
that opens the reply), the prompt with the chosen reply, the prompt with the rejected one. Where the three first differ,
the completions begin:

    n        = longest common prefix of ids(prompt), ids(prompt + chosen), ids(prompt + rejected)
    prompt   = ids(prompt)[:n]      chosen = ids(prompt + chosen)[n:]      rejected = ids(prompt + rejected)[n:]
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import tokenizers
import transformers
from datasets import Dataset, IterableDataset, concatenate_datasets
from datasets.fingerprint import Hasher
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from wishbone.data.encoding import Ids, encode_conversations, encode_texts
from wishbone.data.formats import common_prompt
from wishbone.errors import RequestError

logger = logging.getLogger(__name__)

AnyDataset = TypeVar("AnyDataset", Dataset, IterableDataset)

ID_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
CUT_COLUMN = "prompt_cut"
_INPUTS = ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs", "source_row")
_SHOWN = 10


def tokenize_pairs(
    dataset: AnyDataset, tokenizer: PreTrainedTokenizerBase, *, num_proc: int | None = None
) -> AnyDataset:
    """Adds `prompt_ids`, `chosen_ids`, `rejected_ids` to a data set of pairs, as TRL's `DPOTrainer` tokenizes them.

    Messages go through the chat template (`tools` and `chat_template_kwargs` of the row included), texts get the
    end-of-sequence token if they do not end with it. Where the prompt column is missing, the prompt is what both
    completions begin with. Unlike TRL, a text that spells out the beginning-of-sequence token gets no second one.

    A data set that lies on disk is tokenized once: the result is cached beside it, under the fingerprint of data,
    tokenizer and template. A stream is tokenized as it is read. A data set that has the columns is returned as it is.

    Args:
        dataset: columns chosen, rejected and usually prompt (texts or messages); optional tools, chat_template_kwargs.
        tokenizer: of the model to train.
        num_proc: processes for a `Dataset`; None works in this one, on all its cores if the tokenizer is a fast one.

    Returns:
        The data set with int32 lists `prompt_ids`, `chosen_ids`, `rejected_ids` and int32 `prompt_cut`: how many tokens
        the prompt alone has beyond the prompt it shares with the completions (rarely more than 0; warned of).

    Raises:
        RequestError: no rows, messages but no chat template, texts but no end-of-sequence token, rows that the
            template refuses.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise RequestError(f"pairs are tokenized by a tokenizer, not by a {type(tokenizer).__name__}; pass its tokenizer")
    columns = dataset.column_names or list(next(iter(dataset), {}))
    if set(ID_COLUMNS) <= set(columns):
        return dataset
    if isinstance(dataset, IterableDataset):
        return dataset.map(partial(_tokenize_stream, tokenizer), with_indices=True, batched=True, batch_size=256)
    if len(dataset) == 0:
        raise RequestError("the data set has no rows; there is nothing to tokenize")
    dataset = dataset.with_format(None).remove_columns([c for c in (*ID_COLUMNS, CUT_COLUMN) if c in columns])
    inputs = dataset.select_columns([c for c in _INPUTS if c in columns])
    ids = inputs.map(
        partial(_tokenize_table, tokenizer),
        with_indices=True,
        batched=True,
        remove_columns=inputs.column_names,
        num_proc=num_proc,
        new_fingerprint=Hasher.hash([inputs._fingerprint, _identity(tokenizer)]),
        desc="Tokenizing",
    )
    _warn_of_cut_prompts(ids.with_format("numpy")[CUT_COLUMN][:])
    return concatenate_datasets([dataset, ids], axis=1)


def _tokenize_table(tokenizer: PreTrainedTokenizerBase, batch: Mapping[str, Any], indices: list[int]) -> pa.Table:
    ids = _tokenize_batch(tokenizer, batch, indices)
    types = {name: pa.list_(pa.int32()) for name in ID_COLUMNS} | {CUT_COLUMN: pa.int32()}
    return pa.table({name: pa.array(ids[name], kind) for name, kind in types.items()})


def _tokenize_stream(
    tokenizer: PreTrainedTokenizerBase, batch: Mapping[str, Any], indices: list[int]
) -> dict[str, list[Any]]:
    ids = _tokenize_batch(tokenizer, batch, indices)
    if indices[0] == 0:
        _warn_of_cut_prompts(np.array(ids[CUT_COLUMN]))
    return ids


def _warn_of_cut_prompts(cut: np.ndarray[Any, Any]) -> None:
    if rows := int(np.count_nonzero(cut)):
        logger.warning(
            "In %d of %d rows the tokenized prompt is not how the tokenized prompt + completion begins: the chat template "
            "renders it differently alone, or tokens merge across its end. The completion begins where they part, and "
            "up to %d tokens of the prompt's end are not trained with. To avoid it, use a template that renders the "
            "prompt the same way in both cases, or end the prompt where a token ends.",
            rows,
            len(cut),
            cut.max(),
        )


def _tokenize_batch(
    tokenizer: PreTrainedTokenizerBase, batch: Mapping[str, Any], indices: list[int]
) -> dict[str, list[Any]]:
    numbers = list(batch["source_row"]) if "source_row" in batch else [i + 1 for i in indices]
    pairs = _pairs(batch, numbers)
    encoded: list[EncodedPair] = [([], [], [])] * len(pairs)
    for (tools, kwargs), rows in _grouped_by_settings(batch, len(pairs)):
        chats = [row for row in rows if isinstance(pairs[row][0], list)]
        texts = [row for row in rows if isinstance(pairs[row][0], str)]
        encoders = (partial(_encode_chats, tools=tools, template_kwargs=kwargs), chats), (_encode_texts, texts)
        for encode, members in encoders:
            if members:
                found = _located(partial(encode, tokenizer), [pairs[row] for row in members], [numbers[r] for r in members])
                for row, ids in zip(members, found, strict=True):
                    encoded[row] = ids
    columns: dict[str, list[Any]] = {name: [] for name in (*ID_COLUMNS, CUT_COLUMN)}
    for prompt, with_chosen, with_rejected in encoded:
        shared = min(_common_length(prompt, with_chosen), _common_length(prompt, with_rejected))
        divided = prompt[:shared], with_chosen[shared:], with_rejected[shared:], len(prompt) - shared
        for column, value in zip(columns.values(), divided, strict=True):
            column.append(value)
    return columns
