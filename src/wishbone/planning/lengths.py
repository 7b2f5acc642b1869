"""Tokens of the pairs of a run: counted by the model's tokenizer, estimated from characters, or given.

A pair has a prompt of p tokens and completions of c and r. Cut to M tokens a sequence, it takes in a row

    min(p + c, M) + min(p + r, M) - min(p, M)        tokens, all but the prompt's scored.

Where the tokenizer is not on this machine, four ASCII characters count as a token, as in English, and so does each
other character: tokenizers of English models cut a character of another script into one to three. Each message counts
four more tokens for what a chat template writes around it; tool calls and tools count as their JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wishbone.config.schema import DataConfig
from wishbone.data.json_text import parse_json
from wishbone.errors import RequestError
from wishbone.planning.vision_tower import ESTIMATED_TOKENS, Tower, read_tower

Counts = NDArray[np.int64]

InvalidRows = Literal["refuse", "drop"]

CHARACTERS_A_TOKEN = 4
TOKENS_A_MESSAGE = 4


@dataclass(frozen=True)
class PairLengths:
    """Tokens of pairs before truncation; `source` says in words where they come from.

    Attributes:
        image_tokens: those of prompts that stand for images, all together.
    """

    prompt: Counts
    chosen: Counts
    rejected: Counts
    source: str
    image_tokens: int = 0

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

    Tokens of images are those of `vision_tower`. Where they are an estimate, no pair is left out for them.

    Raises:
        RequestError: the data cannot be read, or holds no usable pair.
    """
    if tokenizer_directory is not None and (tokenizer_directory / "tokenizer.json").is_file():
        prompt, images, chosen, rejected, source = _tokenized(data, tokenizer_directory)
    else:
        rows = list(loaded_pairs(data, turns=data.template != "none"))
        found = estimated_pairs(rows)
        prompt, chosen, rejected, source = found.prompt, found.chosen, found.rejected, found.source
        images = ESTIMATED_TOKENS * np.array([len(row.get("images") or ()) for row in rows], dtype=np.int64)
        prompt = prompt - images
    room = prompt < data.max_length if data.max_length and data.truncation == "keep_start" else prompt >= 0
    usable = room & (chosen > 0) & (rejected > 0)
    if data.max_length:
        images = np.minimum(images, np.maximum(data.max_length - 1 - prompt, 0))
    prompt = prompt + images
    if not usable.any():
        raise RequestError(f"data.train {data.train!r} holds no pair that fits into data.max_length {data.max_length}")
    return PairLengths(prompt[usable], chosen[usable], rejected[usable], source, int(images[usable].sum()))


def estimated_pairs(rows: Iterable[Mapping[str, Any]]) -> PairLengths:
    """Return the lengths of pairs of texts or messages, by their characters."""
    prompt, chosen, rejected = np.array([_estimated_pair(row) for row in rows], dtype=np.int64).reshape(-1, 3).T
    source = (
        f"estimated, {CHARACTERS_A_TOKEN} characters a token, or 1 of other scripts: the model's tokenizer is not on "
        "this machine"
    )
    images = sum(len(row.get("images") or ()) for row in rows)
    if images:
        source += f"; {ESTIMATED_TOKENS:,} tokens an image"
    return PairLengths(prompt, chosen, rejected, source, ESTIMATED_TOKENS * images)


def tokens_of_images(rows: Any, directory: Path) -> Counts:
    """Return tokens of the images of tokenized pairs, [pairs], for the model in a directory."""
    if "images" not in rows.column_names:
        return np.zeros(len(rows), dtype=np.int64)
    images = np.array([len(cells) for cells in rows.select_columns(["images"])["images"]], dtype=np.int64)
    tower = tower_in(directory)
    return images * (ESTIMATED_TOKENS if tower is None else tower.tokens_an_image)


def counted_by(rows: Any, directory: Path) -> str:
    """Return in words where lengths of tokenized pairs come from."""
    if "images" not in rows.column_names:
        return "by the model's tokenizer"
    tower = tower_in(directory)
    if tower is not None and tower.tokens is not None:
        return f"by the model's tokenizer, and {tower.tokens:,} an image"
    return f"by the model's tokenizer, and {ESTIMATED_TOKENS:,} tokens an image by estimate"


def reads_images(directory: Path) -> bool:
    """Return whether the model in a directory reads images, as its config.json tells."""
    return "vision_config" in _config(directory)


def tower_in(directory: Path) -> Tower | None:
    """Return the vision tower of the model in a directory, as its config.json tells."""
    return read_tower(_config(directory))


def _config(directory: Path) -> Mapping[str, Any]:
    try:
        found = parse_json((directory / "config.json").read_bytes())
    except (OSError, ValueError, TypeError):
        return {}
    return found if isinstance(found, Mapping) else {}


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


def _tokenized(data: DataConfig, directory: Path) -> tuple[Counts, Counts, Counts, Counts, str]:
    """Count as training would, without loading torch."""
    from transformers import PreTrainedTokenizerFast

    from wishbone.data.columns import token_lengths
    from wishbone.data.text_turns import in_trained_form
    from wishbone.data.tokenize import ID_COLUMNS, tokenize_pairs

    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
    load = partial(loaded_pairs, data, "drop", images=reads_images(directory))
    rows = in_trained_form(load, tokenizer, data.template, data.train)
    pairs = tokenize_pairs(rows, tokenizer)
    prompt, chosen, rejected = token_lengths(pairs, ID_COLUMNS)
    return prompt, tokens_of_images(pairs, directory), chosen, rejected, counted_by(pairs, directory)


def _estimated_pair(row: Mapping[str, Any]) -> list[int]:
    from wishbone.data.formats import common_prompt

    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if prompt is None:
        prompt, chosen, rejected = common_prompt(chosen, rejected)
    images = ESTIMATED_TOKENS * len(row.get("images") or ())
    tools = _estimated(_json(row["tools"])) if row.get("tools") else 0
    return [_estimated(prompt) + tools + images, _estimated(chosen), _estimated(rejected)]


def _estimated(text: Any) -> int:
    """Tokens of a text or of messages, by their characters."""
    if text is None:
        return 0
    if isinstance(text, str):
        others = len(text) - len(text.encode("ascii", "ignore"))
        return others - (others - len(text)) // CHARACTERS_A_TOKEN
    messages = [message for message in text if isinstance(message, Mapping)]
    return sum(TOKENS_A_MESSAGE + sum(map(_estimated, _said(message))) for message in messages)


def _said(message: Mapping[str, Any]) -> Iterator[str]:
    """The content of a message, and whatever else it says (tool calls, thoughts) as JSON."""
    yield str(message.get("content") or "")
    yield from (_json(value) for key, value in message.items() if key not in ("role", "content") and value)


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)
