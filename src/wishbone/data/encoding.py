"""Texts and conversations as token ids, many at once; the ids are those that the tokenizer gives one by one.

A tokenizer looks for special tokens such as `<|im_start|>` first, and they are always tokens of their own, so

    ids(text) = ids(piece 1) ++ ids(piece 2) ++ ...        pieces: the text, cut before each such token

Rendered conversations repeat pieces: the prompt alone, with the chosen and with the rejected reply; one system message
in a thousand rows. Each distinct piece is tokenized once, and many pieces in one call on all cores. A tokenizer takes
about a hundred times the memory of a text, so the pieces of a call have a mebibyte together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice

import numpy as np
import numpy.typing as npt
from transformers import AddedToken, PreTrainedTokenizerBase, PreTrainedTokenizerFast

Ids = npt.NDArray[np.int32]

CHARACTERS = 2**20
"""Characters of the texts that are tokenized in one call, unless one text has more."""


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, add_special_tokens: bool) -> list[Ids]:
    """The ids of each text, as `tokenizer(text, add_special_tokens=...)` returns them, [tokens], int32.

    No truncation, no padding.
    """
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return []
    if _is_plain_fast(tokenizer):
        tokenizer(
            "", add_special_tokens=add_special_tokens
        )  # sets truncation, padding and special tokens of the backend
        encode = tokenizer.backend_tokenizer.encode_batch_fast
        ids = [
            np.array(encoding.ids, dtype=np.int32)
            for some in _calls(distinct)
            for encoding in encode(some, add_special_tokens=add_special_tokens)
        ]
    else:
        found = tokenizer(distinct, add_special_tokens=add_special_tokens, return_attention_mask=False, verbose=False)
        ids = [np.array(row, dtype=np.int32) for row in found["input_ids"]]
    ids_of = dict(zip(distinct, ids, strict=True))
    return [ids_of[text] for text in texts]


def _calls(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts, in groups of about `CHARACTERS`."""
    group: list[str] = []
    characters = 0
    for text in texts:
        if group and characters + len(text) > CHARACTERS:
            yield group
            group, characters = [], 0
        group.append(text)
        characters += len(text)
    yield group


def encode_rendered(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Ids]:
    """The ids of conversations that a chat template wrote, without further special tokens."""
    if not texts:
        return []
    opener = _opener(tokenizer, texts[0])
    if opener is None:
        return encode_texts(tokenizer, texts, add_special_tokens=False)
    cut = []
    for text in texts:
        head, *turns = text.split(opener)
        cut.append([head] * bool(head) + [opener + turn for turn in turns])
    encoded = iter(encode_texts(tokenizer, list(chain.from_iterable(cut)), add_special_tokens=False))
    return [_joined(list(islice(encoded, len(pieces)))) for pieces in cut]


def _joined(pieces: list[Ids]) -> Ids:
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int32)


def _opener(tokenizer: PreTrainedTokenizerBase, text: str) -> str | None:
    """The most frequent special token before which texts like this one may be cut; None if there is none.

    A cut is exact if the token is found in any context: it is matched in the original text (not normalized), includes
    no white space on its left, needs no word boundary, and no match of another added token can begin before it and
    overlap it.
    """
    if not _is_plain_fast(tokenizer) or tokenizer.split_special_tokens:
        return None
    added: list[AddedToken] = list(tokenizer.added_tokens_decoder.values())
    safe = [
        token.content
        for token in added
        if token.special
        and not (token.normalized or token.lstrip or token.single_word)
        and token.content in text
        and not token.content[0].isspace()
        and not any(_reaches_into(other.content, token.content) for other in added)
    ]
    return max(safe, key=text.count, default=None)


def _reaches_into(other: str, token: str) -> bool:
    """Whether `other` can occur in a text so that it begins before `token` and overlaps its first character."""
    return any(other[i:].startswith(token[: len(other) - i]) for i in range(1, len(other)))


def _is_plain_fast(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether calling the tokenizer only calls its backend: a fast tokenizer whose class does not override the call."""
    kind = type(tokenizer)
    return (
        isinstance(tokenizer, PreTrainedTokenizerFast)
        and kind.__call__ is PreTrainedTokenizerBase.__call__
        and kind._encode_plus is PreTrainedTokenizerFast._encode_plus
    )
