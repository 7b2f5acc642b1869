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

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from wishbone.errors import RequestError

GPT2_CUT = frozenset({"gpt-2"})
DIGITS_CUT = frozenset({"smollm", "starcoder", "refact"})  # each digit alone, then as GPT-2
CONTROL, USER_DEFINED = 3, 4  # token types
ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def gguf_tokenizer(path: Path, metadata: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the GGUF file at `path`, whose key-value pairs are `metadata`.

    Raises:
        RequestError: the file names a pre-tokenization or a tokenizer model that is not known.
    """
    kind = metadata.get("tokenizer.ggml.model")
    cut = metadata.get("tokenizer.ggml.pre")
    if kind == "gpt2" and cut in GPT2_CUT | DIGITS_CUT:
        return _byte_level(metadata, digits_first=cut in DIGITS_CUT)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    except (OSError, ValueError, KeyError, IndexError, NotImplementedError) as error:
        raise _refusal(path, f"its tokenizer ({kind!r}) cannot be rebuilt: {' '.join(str(error).split())}") from error
    if kind == "gpt2" and _cuts_like_gpt2(tokenizer):
        raise _refusal(path, f"how its tokenizer cuts text ({cut!r}) is not known here")
    adds_bos = tokenizer.bos_token_id is not None and tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    if adds_bos != metadata.get("tokenizer.ggml.add_bos_token", adds_bos):
        raise _refusal(path, "the rebuilt tokenizer differs from the file in whether text starts with a BOS token")
    return tokenizer


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
