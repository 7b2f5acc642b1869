"""Lengths of the rows that a run will have, from the tokens of its pairs, before any row is run."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset

from wishbone.data.columns import token_lengths
from wishbone.data.packing import pack_rows

UNKNOWN_LONGEST = 1024
"""Tokens assumed for the longest pair of a stream that is not truncated."""

DRAWN_STEPS, DRAWN_PAIRS = 256, 8192
"""Number of steps drawn to see how long rows will be, and the most pairs drawn in all."""


def longest_of_stream(max_length: int | None) -> int:
    """Return the tokens that a pair of a stream may have in a shared-prefix row.

    Only a bound is known, two sequences of `max_length`; without one, a usual length is assumed.
    """
    return 2 * max_length - 1 if max_length else UNKNOWN_LONGEST


def pair_tokens(dataset: Dataset, max_length: int | None) -> np.ndarray[Any, Any]:
    """Return the tokens of each pair of a tokenized data set in a shared-prefix row, [pairs].

    Tokens that both completions begin with are counted twice, though a row holds them once.
    """
    prompt, chosen, rejected = token_lengths(dataset, ("prompt_ids", "chosen_ids", "rejected_ids"))
    if max_length is None:
        return prompt + chosen + rejected
    cut = [np.minimum(tokens, max_length) for tokens in (prompt + chosen, prompt + rejected, prompt)]
    return cut[0] + cut[1] - cut[2]


def most_in_a_row(tokens: np.ndarray[Any, Any], pairs_a_step: int) -> int:
    """Return the tokens of a step with the longest pairs of a data set, whose pairs have these tokens."""
    return int(np.sort(tokens)[-pairs_a_step:].sum())


def likely_rows(tokens: np.ndarray[Any, Any], pairs_a_step: int, budget: int) -> np.ndarray[Any, Any]:
    """Return the tokens of rows of steps whose pairs are drawn from a data set, [rows].

    Args:
        tokens: of each pair of the data set in a row.
        pairs_a_step: pairs that are drawn for a step.
        budget: most tokens of a row of several pairs.
    """
    return np.array([sum(row) for row in _drawn(tokens, pairs_a_step, budget)])


def most_pairs_in_a_row(tokens: np.ndarray[Any, Any], pairs_a_step: int, budget: int) -> int:
    """Return the most pairs of one row among `likely_rows`; arguments as theirs."""
    return max(map(len, _drawn(tokens, pairs_a_step, budget)))


def _drawn(tokens: np.ndarray[Any, Any], pairs_a_step: int, budget: int) -> list[list[int]]:
    """Tokens of the pairs of each row."""
    draw = np.random.default_rng(0)
    drawn = max(1, min(DRAWN_STEPS, DRAWN_PAIRS // pairs_a_step))
    steps = [draw.choice(tokens, pairs_a_step).tolist() for _ in range(drawn)]
    return [[pairs[i] for i in row] for pairs in steps for row in pack_rows(pairs, budget)]
