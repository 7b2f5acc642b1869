"""The tokenizer that a GGUF file describes in its metadata.

A GGUF holds vocabulary and merges, and only the *name* of the pre-tokenization: how text is cut before merges apply.
Two newlines before a digit are one token when digits are cut off first and two when not, so a name taken for another
gives wrong token ids, quietly. The byte-level tokenizers whose cut is known here are built here; others by
transformers where it knows the name; the rest is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from wishbone.errors import RequestError, counted, one_line

GPT2_CUT = frozenset({"gpt-2"})
DIGITS_CUT = frozenset({"smollm", "starcoder", "refact"})  # each digit alone, then as GPT-2
CONTROL, USER_DEFINED = 3, 4  # token types
ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
TEXTS, NUMBERS = ("tokens", "merges"), ("token_type", "scores")
UNFIT = (
    OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, ImportError,
    RuntimeError, StrictDataclassError,
)  # fmt: skip
"""What transformers raises for metadata that does not fit: it builds whatever architecture a file names out of them."""


def gguf_tokenizer(path: Path, metadata: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the GGUF file at `path`, whose key-value pairs are `metadata`.

    Raises:
        RequestError: the file names a pre-tokenization or a tokenizer model that is not known.
    """
    kind = metadata.get("tokenizer.ggml.model")
    cut = metadata.get("tokenizer.ggml.pre")
    if problem := _unsound(metadata):
        raise _refusal(path, f"its tokenizer is damaged: {problem}")
    if kind == "gpt2" and cut in (*GPT2_CUT, *DIGITS_CUT):
        if problem := _unsound_merges(metadata):
            raise _refusal(path, f"its tokenizer is damaged: {problem}")
        return _byte_level(metadata, digits_first=cut in DIGITS_CUT)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        starts_with = tokenizer("a").input_ids[:1]
    except UNFIT as error:
        raise _refusal(path, f"its tokenizer ({kind!r:.40}) cannot be rebuilt: {one_line(error)}") from error
    if kind == "gpt2" and _cuts_like_gpt2(tokenizer):
        raise _refusal(path, f"how its tokenizer cuts text ({cut!r:.40}) is not known here")
    adds_bos = tokenizer.bos_token_id is not None and starts_with == [tokenizer.bos_token_id]
    if adds_bos != metadata.get("tokenizer.ggml.add_bos_token", adds_bos):
        raise _refusal(path, "the rebuilt tokenizer differs from the file in whether text starts with a BOS token")
    return tokenizer


def _unsound(metadata: dict[str, Any]) -> str | None:
    """Return what is wrong with the vocabulary of any tokenizer, or None."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        return "it has no tokens"
    for names, item in ((TEXTS, str), (NUMBERS, int | float)):
        for name in names:
            values = metadata.get(f"tokenizer.ggml.{name}", [])
            if not isinstance(values, list) or not all(isinstance(value, item) for value in values):
                return f"{name} is not a list of {'texts' if item is str else 'numbers'}"
            if values and name != "merges" and len(values) != len(tokens):
                return f"it has {counted(len(tokens), 'token')}, and {name} has {len(values):,}"
    for name in ROLES.values():
        number = metadata.get(f"tokenizer.ggml.{name}_token_id", 0)
        if type(number) is not int or not 0 <= number < len(tokens):
            return f"{name}_token_id is {number!r:.40}, and it has {counted(len(tokens), 'token')}"
    for name in ("add_bos_token", "add_space_prefix"):
        if type(metadata.get(f"tokenizer.ggml.{name}", False)) is not bool:
            return f"{name} is neither true nor false"
    if not isinstance(metadata.get("tokenizer.chat_template", ""), str):
        return "its chat template is no text"
    return None


def _unsound_merges(metadata: dict[str, Any]) -> str | None:
    """Return what is wrong with the vocabulary of a tokenizer that is built here, or None."""
    tokens, merges = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.merges")
    if not merges or not metadata.get("tokenizer.ggml.token_type"):
        return "it has no merges or no token types"
    if len(known := set(tokens)) != len(tokens):
        return "it has the same token twice"
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= known:
            return f"the merge {merge!r:.40} is not made of two of its tokens"
    if metadata.get("tokenizer.ggml.add_bos_token", False):
        number = metadata.get("tokenizer.ggml.bos_token_id")
        if number is None:
            return "text starts with a BOS token, and there is none"
        if not tokens[number] or tokens[number].startswith("$") or any(map(str.isspace, tokens[number])):
            return f"its BOS token is {tokens[number]!r:.40}"
    return None


def _byte_level(metadata: dict[str, Any], *, digits_first: bool) -> PreTrainedTokenizerFast:
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    cut = pre_tokenizers.ByteLevel(add_prefix_space=bool(metadata.get("tokenizer.ggml.add_space_prefix", False)))
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, cut]) if digits_first else cut
    backend.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True):
        if kind == CONTROL:
            backend.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == USER_DEFINED:
            backend.add_tokens([AddedToken(token, normalized=False)])
    roles = {
        role: tokens[metadata[f"tokenizer.ggml.{name}_token_id"]]
        for role, name in ROLES.items()
        if f"tokenizer.ggml.{name}_token_id" in metadata
    }
    if metadata.get("tokenizer.ggml.add_bos_token", False):
        bos = roles["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, metadata["tokenizer.ggml.bos_token_id"])]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **roles)
    tokenizer.chat_template = metadata.get("tokenizer.chat_template")
    return tokenizer


def _cuts_like_gpt2(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer was built with GPT-2's cut, the one that stands in for names that are not known."""
    cut = json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"]
    return cut is None or (cut["type"] == "ByteLevel" and cut["use_regex"])


def _refusal(path: Path, why: str) -> RequestError:
    return RequestError(f"{path} cannot be used: {why}; name the original model's directory or hub id instead")
