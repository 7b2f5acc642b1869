"""A tokenizer as GGUF describes it: vocabulary, merges or scores, and the name of how text is cut before merges apply.

llama.cpp has two algorithms for the tokenizers of language models:

- "gpt2", byte-level BPE with merges. The cut is a name; here it is found from what the tokenizer itself does (a regular
  expression, or digits), not from the model's name.
- "llama", SentencePiece BPE with bytes for what it lacks. Instead of merges each token has a score, and of all
  neighbours the pair whose token has the highest score is merged first. With the score -(rank of the first merge that
  makes the token) that is the order of the merges.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

from wishbone.errors import RequestError

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_THREE_DIGITS = rf"{_ENDINGS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"


def _cased(endings: str, digits: str) -> str:
    """A cut between lower and upper case."""
    before = r"[^\r\n\p{L}\p{N}]?"
    return f"{before}{_UPPER}*{_LOWER}+{endings}|{before}{_UPPER}+{_LOWER}*{endings}|{digits}|{_CASED_REST}"


CUTS = {
    rf"{_ENDINGS}|{_WORDS}|\p{{N}}|{_REST}": "qwen2",
    _cased("", r"\p{N}"): "tekken",
    _cased(f"{_ENDINGS}?", r"\p{N}{1,3}"): "gpt-4o",
}
"""llama.cpp's names of regular expressions that cut text."""
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


@dataclass(frozen=True)
class Vocabulary:
    """What GGUF holds of a tokenizer; `scores` or `merges` is empty."""

    model: str
    cut: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    space_before: bool

    def write(self, writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase) -> None:
        """Add it to a file that is being written, with the special tokens and the chat template."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.cut)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores:
            writer.add_token_scores(self.scores)
        if self.merges:
            writer.add_token_merges(self.merges)
        for add, number in (
            (writer.add_bos_token_id, tokenizer.bos_token_id),
            (writer.add_eos_token_id, tokenizer.eos_token_id),
            (writer.add_unk_token_id, tokenizer.unk_token_id),
            (writer.add_pad_token_id, tokenizer.pad_token_id),
        ):
            if number is not None:
                add(number)
        ids = list(tokenizer("a")["input_ids"])
        writer.add_add_bos_token(bool(ids) and ids[0] == tokenizer.bos_token_id)
        writer.add_add_eos_token(bool(ids) and ids[-1] == tokenizer.eos_token_id)
        writer.add_add_space_prefix(self.space_before)
        if isinstance(tokenizer.chat_template, str):
            writer.add_chat_template(tokenizer.chat_template)


def vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int) -> Vocabulary:
    """Return a tokenizer as GGUF describes it.

    Args:
        tokenizer: a fast tokenizer.
        rows: of the model's embedding; tokens that the tokenizer lacks are padding.

    Raises:
        RequestError: GGUF has no such tokenizer, or it is not known here how it cuts text.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described: dict[str, Any] = {} if backend is None else json.loads(backend.to_str())
    model = described.get("model") or {}
    if model.get("type") != "BPE":
        raise RequestError(f"its tokenizer is of the kind {model.get('type') or type(tokenizer).__name__!r}, not BPE")
    numbers = tokenizer.get_vocab()
    if max(numbers.values()) >= rows:
        raise RequestError(f"its tokenizer has {max(numbers.values()) + 1:,} tokens and its embedding {rows:,} rows")
    tokens = [f"[PAD{number}]" for number in range(rows)]
    types = [int(TokenType.UNUSED)] * rows
    for token, number in numbers.items():
        tokens[number], types[number] = token, int(TokenType.NORMAL)
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    for added in described["added_tokens"]:
        types[added["id"]] = int(TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED)
    if not model.get("byte_fallback"):
        cut = _cut(described.get("pre_tokenizer"), ignores_merges=bool(model.get("ignore_merges")))
        return Vocabulary("gpt2", cut, tokens, types, [], merges, space_before=False)
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    scores = [-float(ranks.get(token, len(merges) + number)) for number, token in enumerate(tokens)]
    for number, token in enumerate(tokens):
        if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
            types[number] = int(TokenType.BYTE)
        elif token == tokenizer.unk_token:
            types[number] = int(TokenType.UNKNOWN)
        elif types[number] == TokenType.USER_DEFINED:
            tokens[number] = token.replace(SPACE, " ")
    return Vocabulary("llama", "default", tokens, types, scores, [], space_before=_adds_space(described))


def _cut(described: Any, *, ignores_merges: bool) -> str:
    """llama.cpp's name of how a byte-level tokenizer cuts text."""
    steps = described["pretokenizers"] if described and described["type"] == "Sequence" else [described]
    kinds = [step["type"] if step else None for step in steps]
    last = steps[-1] or {}
    if kinds == ["ByteLevel"] and last["use_regex"] and not last["add_prefix_space"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and last["use_regex"]:
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not last["use_regex"]:
        pattern = steps[0]["pattern"].get("Regex", "")
        if pattern == _THREE_DIGITS:
            return "llama-bpe" if ignores_merges else "dbrx"
        if pattern in CUTS:
            return CUTS[pattern]
    raise RequestError("how its tokenizer cuts text is not known here")


def _adds_space(described: dict[str, Any]) -> bool:
    """Whether a space is put before text."""
    steps: list[dict[str, Any]] = []
    for part in (described.get("normalizer"), described.get("pre_tokenizer")):
        steps += (part.get("normalizers") or part.get("pretokenizers") or [part]) if part else []
    return any(s["type"] == "Prepend" or s.get("prepend_scheme") in ("always", "first") for s in steps)
