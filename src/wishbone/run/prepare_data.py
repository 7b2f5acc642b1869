"""The pairs of a run: read, tokenized, checked, and some of them held out."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from wishbone.config.schema import RunConfig
from wishbone.data.columns import IdLists, arrow_batches
from wishbone.data.inspect import Inspection, inspect_pairs, refuse_or_drop, unusable
from wishbone.data.repeats import Keys, digest, pair_key
from wishbone.data.row_reader import InvalidRows, MalformedRows, Template
from wishbone.data.source import load_pairs
from wishbone.data.text_turns import are_texts, in_trained_form
from wishbone.data.tokenize import ID_COLUMNS, tokenize_pairs
from wishbone.errors import RequestError, counted, counted_of

logger = logging.getLogger(__name__)

RowNumbers = npt.NDArray[np.int64]


def prepare_data(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, Dataset | None, int]:
    """Load, tokenize and check the pairs of a run.

    Returns:
        Pairs to learn from, pairs held out or None, and how many unusable rows were dropped from both.

    Raises:
        RequestError: the data cannot be read, holds no usable pair, or holds unusable rows that may not be dropped.
    """
    data = config.data

    def tokenized(source: str, split: str, invalid_rows: InvalidRows) -> tuple[Dataset, Inspection]:
        def load(turns: bool) -> Dataset:
            pairs: Any = load_pairs(
                source,
                split=split,
                invalid_rows=invalid_rows,
                system_prompt=data.system_prompt,
                columns=data.columns,
                pairs=data.pairs,
                least_margin=data.least_margin,
                turns=turns,
            )
            return pairs

        rows = in_trained_form(load, tokenizer, data.template, source)
        pairs = tokenize_pairs(rows, tokenizer)
        return pairs, inspect_pairs(pairs, max_length=data.max_length, truncation=data.truncation)

    def usable(source: str, split: str) -> tuple[Dataset, int]:
        try:
            pairs, inspection = tokenized(source, split, data.invalid_rows)
        except MalformedRows as malformed:
            _, inspection = tokenized(source, split, "drop")
            raise RequestError([*malformed.problems, *unusable(inspection, data.lost_text)]) from malformed
        kept = refuse_or_drop(pairs, inspection, data.invalid_rows, data.lost_text)
        return kept, len(pairs) - len(kept)

    pairs, dropped = usable(data.train, data.split)
    if data.eval is not None or data.eval_split is not None:
        heldout, heldout_dropped = usable(data.eval or data.train, data.eval_split or data.split)
        _say_what_is_in_both(pairs, heldout, data.train)
        return pairs, heldout, dropped + heldout_dropped
    if data.eval_fraction > 0:
        numbers = _held_out(pairs, data.eval_fraction, config.training.seed)
        train, heldout = (pairs.select(part) for part in numbers)
        _say_what_is_in_both(train, heldout, data.train)
        return train, heldout, dropped
    return pairs, None, dropped


def _held_out(pairs: Dataset, fraction: float, seed: int) -> tuple[RowNumbers, RowNumbers]:
    """Which pairs to learn from and which to hold out: whole rows, so no prompt of a ranked row is in both parts."""
    numbers = pairs.with_format("numpy")["source_row"][:]
    rows = np.unique(numbers)
    if len(rows) < 2:
        raise RequestError(f"data.eval_fraction {fraction:g} of {counted(len(rows), 'row')} leaves nothing to train on")
    train, heldout = split_rows(len(rows), min(max(1, round(len(rows) * fraction)), len(rows) - 1), seed)
    if len(rows) == len(pairs):
        return train, heldout
    is_heldout = np.isin(numbers, rows[heldout])
    return np.flatnonzero(~is_heldout), np.flatnonzero(is_heldout)


def _say_what_is_in_both(train: Dataset, heldout: Dataset, source: str) -> None:
    """Log how many held-out pairs are trained, too: their figures show what was learned by heart."""
    seen = len(heldout) - int((~np.isin(_keys(heldout), _keys(train))).sum())
    if seen:
        logger.warning(
            "%s trained, too, so their figures show what was learned by heart; `wishbone check %s --fix FILE` writes "
            "each pair once",
            counted_of(seen, len(heldout), "held-out pair", "is", "are"),
            source,
        )


def _keys(pairs: Dataset) -> Keys:
    """A hash of each pair's tokens, [pairs]."""
    found: list[int] = []
    for lists in arrow_batches(pairs, ID_COLUMNS):
        sides = [IdLists(side) for side in lists]
        found += (pair_key(*(digest(ids[row].data) for ids in sides)) for row in range(len(lists[0])))
    return np.array(found, dtype=np.uint64)


def trained_template(pairs: Dataset, asked: Template) -> Template:
    """`data.template` as it was carried out: chat for messages, none for texts; as asked for pairs of token ids."""
    if "prompt" not in pairs.column_names:
        return asked
    return "none" if are_texts(pairs) else "chat"


def split_rows(rows: int, heldout: int, seed: int) -> tuple[RowNumbers, RowNumbers]:
    """Return which rows to learn from and which to hold out, as `Dataset.train_test_split` divides them.

    That method keeps its answer in a file, which could be damaged without anybody noticing.
    """
    order = np.random.default_rng(seed).permutation(rows)
    return order[heldout:], order[:heldout]
