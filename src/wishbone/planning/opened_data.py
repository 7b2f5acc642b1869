"""Data as `wishbone init` opens it: how many pairs there are, how long they are, what of them cannot be used.

Tokens are counted by the model's tokenizer where it is on this machine, and estimated from characters elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from wishbone.config.schema import DataConfig
from wishbone.errors import RequestError
from wishbone.planning.lengths import (
    InvalidRows,
    PairLengths,
    counted_by,
    estimated_pairs,
    loaded_pairs,
    reads_images,
    tokens_of_images,
)

SHOWN = 3
"""Problems of rows that are listed."""


@dataclass(frozen=True)
class OpenedData:
    """What a data set holds.

    Attributes:
        lengths: tokens of the pairs that can be used.
        left_out: rows that are no usable pairs, or lose text in the chat template.
        problems: the first sentences about those that are pairs; a note of the reader tells the others.
    """

    lengths: PairLengths
    left_out: int
    problems: tuple[str, ...]

    @property
    def prompt(self) -> int:
        """Median tokens of a prompt, 1 at least."""
        return max(1, int(np.median(self.lengths.prompt)))

    @property
    def completion(self) -> int:
        """Median tokens of a completion, 1 at least."""
        return max(1, int(np.median(np.concatenate([self.lengths.chosen, self.lengths.rejected]))))

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt plus completion, and at least those of a median pair."""
        sequences = self.lengths.prompt + np.maximum(self.lengths.chosen, self.lengths.rejected)
        return max(int(sequences.max()), self.prompt + self.completion)


def open_data(name: str, tokenizer_directory: Path | None) -> OpenedData:
    """Read all pairs of a data set and count their tokens.

    Args:
        name: a file, a directory or a data set on the hub.
        tokenizer_directory: of the model; None: tokens are estimated.

    Raises:
        RequestError: the data cannot be read, or hold no usable pair.
    """
    from wishbone.data.row_reader import MalformedRows

    data = DataConfig(train=name, max_length=None)
    read = partial(_estimated, data)
    if tokenizer_directory is not None and (tokenizer_directory / "tokenizer.json").is_file():
        read = partial(_tokenized, data, tokenizer_directory)
    problems: Sequence[str] = ()
    try:
        lengths, unusable, more = read("refuse")
    except MalformedRows as malformed:
        problems = malformed.problems
        lengths, unusable, more = read("drop")
        unusable += malformed.misfits
    problems = [*problems, *more]
    if not len(lengths):
        raise RequestError([f"{name!r} holds no usable pair", *problems[:SHOWN]])
    return OpenedData(lengths, unusable, tuple(more[:SHOWN]))


def _tokenized(data: DataConfig, directory: Path, invalid_rows: InvalidRows) -> tuple[PairLengths, int, list[str]]:
    from transformers import PreTrainedTokenizerFast

    from wishbone.data.columns import token_lengths
    from wishbone.data.inspect import inspect_pairs, unusable
    from wishbone.data.text_turns import in_trained_form
    from wishbone.data.tokenize import ID_COLUMNS, tokenize_pairs

    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
    load = partial(loaded_pairs, data, invalid_rows, images=reads_images(directory))
    rows = in_trained_form(load, tokenizer, data.template, data.train)
    pairs = tokenize_pairs(rows, tokenizer)
    found = inspect_pairs(pairs, max_length=None, truncation="keep_start")
    lost = {row for rows_of_one in found.lost.values() for row in rows_of_one}
    numbers = pairs.with_format("numpy")["source_row"][:]
    usable = ~np.isin(numbers, list(lost))
    usable[list(found.invalid)] = False
    prompt, chosen, rejected = (tokens[usable] for tokens in token_lengths(pairs, ID_COLUMNS))
    images = tokens_of_images(pairs.select(np.flatnonzero(usable)), directory)
    lengths = PairLengths(prompt + images, chosen, rejected, counted_by(pairs, directory), int(images.sum()))
    return lengths, int((~usable).sum()), unusable(found, "refuse")


def _estimated(data: DataConfig, invalid_rows: InvalidRows) -> tuple[PairLengths, int, list[str]]:
    lengths = estimated_pairs(loaded_pairs(data, invalid_rows, turns=True))
    usable = (lengths.chosen > 0) & (lengths.rejected > 0)
    kept = replace(
        lengths, prompt=lengths.prompt[usable], chosen=lengths.chosen[usable], rejected=lengths.rejected[usable]
    )
    return kept, int((~usable).sum()), [] if usable.all() else ["some completions are empty"]
