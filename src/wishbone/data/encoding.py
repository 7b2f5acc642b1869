"""Texts and conversations as token ids, many at once; the ids are those that the tokenizer gives one by one.

A tokenizer looks for special tokens such as `<|im_start|>` first, and they are always tokens of their own, so

    ids(text) = ids(piece 1) ++ ids(piece 2) ++ ...        pieces: the text, cut before each such token

Rendered conversations repeat pieces: the prompt alone, with the chosen and with the rejected reply; one system message
in a thousand rows. Each distinct piece is tokenized once, and all pieces of a batch in one call on all cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice

from transformers import AddedToken, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from wishbone.data.template_writer import Ids


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, add_special_tokens: bool) -> list[Ids]:
    """The ids of each text, as `tokenizer(text, add_special_tokens=...)` returns them. No truncation, no padding."""
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return []
    if _is_plain_fast(tokenizer):
        tokenizer(
            "", add_special_tokens=add_special_tokens
        )  # sets truncation, padding and special tokens of the backend
        encodings = tokenizer.backend_tokenizer.encode_batch_fast(distinct, add_special_tokens=add_special_tokens)
        ids = [encoding.ids for encoding in encodings]
    else:
        ids = tokenizer(distinct, add_special_tokens=add_special_tokens, return_attention_mask=False, verbose=False)[
            "input_ids"
        ]
    ids_of = dict(zip(distinct, ids, strict=True))
    return [ids_of[text] for text in texts]


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
    return [list(chain.from_iterable(islice(encoded, len(pieces)))) for pieces in cut]


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
