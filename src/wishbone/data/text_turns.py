"""Pairs of texts on a model with a chat template: in which form they are trained.

A chat model answers a prompt in its template's turns. Raw text behind such a model trains it on a form in which nobody
asks it, so `wishbone train` writes a text prompt as one user turn and the completions as answers. Texts that already
hold the tokens of a template stay as they are.
"""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
from datasets import Dataset
from transformers import PreTrainedTokenizerBase


def are_texts(pairs: Dataset) -> bool:
    """Whether pairs are texts and not messages."""
    kind = pairs.features["prompt"] if "prompt" in pairs.column_names else None
    return getattr(kind, "dtype", None) == "string"


def hold_template_tokens(pairs: Dataset, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether most prompts, texts or messages of plain text, hold a special token of the tokenizer."""
    tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    if not tokens or not len(pairs):
        return False
    column = pairs.select_columns(["prompt"]).with_format("arrow")[:]["prompt"].combine_chunks()
    texts: Any = column
    if pa.types.is_list(column.type):
        if not pa.types.is_struct(column.type.value_type):
            return False
        texts = column.flatten().field("content")
    held = pc.match_substring_regex(texts, "|".join(map(re.escape, tokens)))
    return int(pc.sum(held).as_py() or 0) * 2 > len(pairs)
