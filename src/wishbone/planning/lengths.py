"""Tokens of the pairs of a run: counted by the model's tokenizer, estimated from characters, or given.

A pair has a prompt of p tokens and completions of c and r. Cut to M tokens a sequence, it takes in a row

    min(p + c, M) + min(p + r, M) - min(p, M)        tokens, all but the prompt's scored.

Where the tokenizer is not on this machine, a token counts as four characters of text, which holds for English but not
for other scripts, and each message as four more tokens for what a chat template writes around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wishbone.config.schema import DataConfig
from wishbone.data.json_text import parse_json
from wishbone.errors import RequestError

Counts = NDArray[np.int64]

InvalidRows = Literal["refuse", "drop"]

CHARACTERS_A_TOKEN = 4
TOKENS_A_MESSAGE = 4
TOKENS_AN_IMAGE = 1000
"""By estimate: what Qwen's processors write for 900 x 900 pixels. Training counts each image by its size."""


@dataclass(frozen=True)
class PairLengths:
    """Tokens of pairs before truncation; `source` says in words where they come from."""

    prompt: Counts
    chosen: Counts
    rejected: Counts
    source: str

    def __len__(self) -> int:
        return len(self.prompt)

    def rows(self, max_length: int | None) -> Counts:
        """Tokens that each pair takes in a row."""
        with_chosen, with_rejected, prompt = self._cut(max_length)
        return with_chosen + with_rejected - prompt

    def scored(self, max_length: int | None) -> Counts:
        """Tokens of each pair's completions."""
        with_chosen, with_rejected, prompt = self._cut(max_length)
        return with_chosen + with_rejected - 2 * prompt

    def contexts(self, max_length: int | None) -> NDArray[np.float64]:
        """Tokens that the tokens of each pair attend to, added up."""
        with_chosen, with_rejected, prompt = (tokens.astype(np.float64) for tokens in self._cut(max_length))
        return (with_chosen**2 + with_rejected**2 - prompt**2) / 2

    def _cut(self, max_length: int | None) -> tuple[Counts, Counts, Counts]:
        sequences = self.prompt + self.chosen, self.prompt + self.rejected, self.prompt
        if max_length is None:
            return sequences
        return tuple(np.minimum(tokens, max_length) for tokens in sequences)  # type: ignore[return-value]


def given_lengths(pairs: int, prompt: int, completion: int, longest: int) -> PairLengths:
    """Return pairs of median length and one with the longest sequences, in the same proportion."""
    share = completion / (prompt + completion)
    tokens = round(longest * share)
    prompts = np.full(pairs, prompt, dtype=np.int64)
    completions = np.full(pairs, completion, dtype=np.int64)
    prompts[0], completions[0] = max(longest - tokens, 1), max(tokens, 1)
    return PairLengths(prompts, completions, completions.copy(), "as given")


def measured_lengths(data: DataConfig, tokenizer_directory: Path | None) -> PairLengths:
    """Return the lengths of the pairs to learn from, without those that cannot be used.

    Raises:
        RequestError: the data cannot be read, or holds no usable pair.
    """
    if tokenizer_directory is not None and (tokenizer_directory / "tokenizer.json").is_file():
        prompt, chosen, rejected, source = _tokenized(data, tokenizer_directory)
    else:
        found = estimated_pairs(loaded_pairs(data, turns=data.template != "none"))
        prompt, chosen, rejected, source = found.prompt, found.chosen, found.rejected, found.source
    room = prompt < data.max_length if data.max_length and data.truncation == "keep_start" else prompt >= 0
    usable = room & (chosen > 0) & (rejected > 0)
    if not usable.any():
        raise RequestError(f"data.train {data.train!r} holds no pair that fits into data.max_length {data.max_length}")
    return PairLengths(prompt[usable], chosen[usable], rejected[usable], source)


def estimated_pairs(rows: Iterable[Mapping[str, Any]]) -> PairLengths:
    """Return the lengths of pairs of texts or messages, by their characters."""
    prompt, chosen, rejected = np.array([_estimated_pair(row) for row in rows], dtype=np.int64).reshape(-1, 3).T
    source = f"estimated, {CHARACTERS_A_TOKEN} characters a token: the model's tokenizer is not on this machine"
    if any(row.get("images") for row in rows):
        source += f"; {TOKENS_AN_IMAGE:,} tokens an image"
    return PairLengths(prompt, chosen, rejected, source)


def with_image_tokens(prompt: Counts, rows: Any) -> Counts:
    """Return tokens of prompts, [pairs], with those that their images take by estimate."""
    if "images" not in rows.column_names:
        return prompt
    images = np.array([len(cells) for cells in rows.select_columns(["images"])["images"]], dtype=np.int64)
    return prompt + TOKENS_AN_IMAGE * images


def counted_by(rows: Any) -> str:
    """Return in words where lengths of tokenized pairs come from."""
    estimate = f", and {TOKENS_AN_IMAGE:,} tokens an image by estimate" if "images" in rows.column_names else ""
    return f"by the model's tokenizer{estimate}"


def reads_images(directory: Path) -> bool:
    """Return whether the model in a directory reads images, as its config.json tells."""
    try:
        return "vision_config" in parse_json((directory / "config.json").read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def loaded_pairs(
    data: DataConfig, invalid_rows: InvalidRows = "drop", turns: bool = False, *, images: bool = True
) -> Any:
    """Load the pairs to learn from as their settings say.

    Args:
        data: the settings.
        invalid_rows: what happens to rows that are no pairs, instead of what the settings say.
        turns: whether texts with a prompt become messages.
        images: whether rows with images are pairs.

    Raises:
        RequestError: as `wishbone.data.source.load_pairs`.
    """
    from wishbone.data.source import load_pairs

    return load_pairs(
        data.train,
        split=data.split,
        invalid_rows=invalid_rows,
        system_prompt=data.system_prompt,
        columns=data.columns,
        pairs=data.pairs,
        least_margin=data.least_margin,
        turns=turns,
        images="read" if images else "refuse",
    )


def _tokenized(data: DataConfig, directory: Path) -> tuple[Counts, Counts, Counts, str]:
    """Count as training would, without loading torch."""
    from transformers import PreTrainedTokenizerFast

    from wishbone.data.columns import token_lengths
    from wishbone.data.text_turns import in_trained_form
    from wishbone.data.tokenize import ID_COLUMNS, tokenize_pairs

    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
    load = partial(loaded_pairs, data, images=reads_images(directory))
    rows = in_trained_form(lambda turns: load(turns=turns), tokenizer, data.template, data.train)
    pairs = tokenize_pairs(rows, tokenizer)
    prompt, chosen, rejected = token_lengths(pairs, ID_COLUMNS)
    return with_image_tokens(prompt, pairs), chosen, rejected, counted_by(pairs)


def _estimated_pair(row: Mapping[str, Any]) -> list[int]:
    from wishbone.data.formats import common_prompt

    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if prompt is None:
        prompt, chosen, rejected = common_prompt(chosen, rejected)
    images = TOKENS_AN_IMAGE * len(row.get("images") or ())
    return [_estimated(prompt) + images, _estimated(chosen), _estimated(rejected)]


def _estimated(text: Any) -> int:
    """Tokens of a text or of messages, by their characters."""
    if text is None:
        return 0
    if isinstance(text, str):
        return -(-len(text) // CHARACTERS_A_TOKEN)
    messages = [message for message in text if isinstance(message, Mapping)]
    return sum(TOKENS_A_MESSAGE + _estimated(str(message.get("content") or "")) for message in messages)
