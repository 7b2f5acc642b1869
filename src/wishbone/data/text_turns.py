"""Pairs of texts on a model with a chat template: in which form they are trained.

A chat model answers a prompt in its template's turns. Raw text behind such a model trains it on a form in which nobody
asks it, so `wishbone train` writes a text prompt as one user turn and the completions as answers. Texts that already
hold the tokens of a template stay as they are.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from wishbone.data.row_reader import Template
from wishbone.errors import encodable

logger = logging.getLogger(__name__)


def in_trained_form(
    load: Callable[[bool], Dataset], tokenizer: PreTrainedTokenizerBase, template: Template, name: str
) -> Dataset:
    """Return the pairs of a source in the form in which they are trained; where texts stay texts, say so.

    Args:
        load: loads the pairs; True: texts with a prompt as turns.
        tokenizer: of the model to train.
        template: `data.template`.
        name: of the source, for messages.
    """
    turns = template == "chat" or (template == "auto" and bool(tokenizer.chat_template))
    pairs = load(turns)
    if turns and template == "auto" and hold_template_tokens(pairs, tokenizer):
        raw = load(False)
        if are_texts(raw):
            logger.warning(
                "%s: the texts hold tokens of the model's chat template, so instead they are trained as they are "
                "(data.template: chat writes them as turns).",
                encodable(name),
            )
            return raw
    elif turns and are_texts(pairs):
        logger.warning(
            "%s: chosen and rejected contain the prompt as text, so they are trained without the model's chat "
            "template; give the prompt in a column of its own to use it.",
            encodable(name),
        )
    return pairs


def are_texts(pairs: Dataset) -> bool:
    """Whether pairs are texts and not messages."""
    kind = pairs.features["prompt"] if "prompt" in pairs.column_names else None
    return getattr(kind, "dtype", None) == "string"


def hold_template_tokens(pairs: Dataset, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether most prompts, texts or messages of plain text, hold a special token of the tokenizer."""
    tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    if not tokens or not len(pairs):
        return False
    pattern = "|".join(map(re.escape, tokens))
    held = 0
    for chunk in pairs.select_columns(["prompt"]).with_format("arrow")[:]["prompt"].chunks:
        texts: Any = chunk
        if pa.types.is_list(chunk.type):
            if not pa.types.is_struct(chunk.type.value_type):
                return False
            texts = chunk.flatten().field("content")
        held += pc.sum(pc.match_substring_regex(texts, pattern)).as_py() or 0
    return held * 2 > len(pairs)
