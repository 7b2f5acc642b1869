"""The pairs of a run: read, tokenized, checked, and some of them held out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from wishbone.config.schema import ModelConfig, RunConfig
from wishbone.data import rows as rewritten
from wishbone.data.columns import IdLists, arrow_batches, keys_with_images
from wishbone.data.inspect import Inspection, inspect_pairs, refuse_or_drop, unusable
from wishbone.data.repeats import Keys, digest, pair_key
from wishbone.data.row_reader import InvalidRows, MalformedRows, Template
from wishbone.data.text_turns import are_texts, in_trained_form
from wishbone.data.tokenize import ID_COLUMNS, tokenize_pairs
from wishbone.errors import RequestError, counted, counted_of
from wishbone.model.checkpoint import reads_images
from wishbone.model.load import load_processor
from wishbone.planning.lengths import loaded_pairs
from wishbone.trainer.image_tokens import has_images, tokenize_image_pairs, with_same_columns

logger = logging.getLogger(__name__)

RowNumbers = npt.NDArray[np.int64]


def prepare_data(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    processor: Callable[[], ProcessorMixin] | None = None,
    tell: Callable[[str], None] | None = None,
) -> tuple[Dataset, Dataset | None, int]:
    """Load, tokenize and check the pairs of a run.

    Args:
        config: of the run.
        tokenizer: of the model.
        processor: loads the model's processor, where the model reads images; None: pairs with images are refused.
        tell: is told what there is to know of the pairs to learn from (cut, repeated, contradicted), in sentences.

    Returns:
        Pairs to learn from, pairs held out or None, and how many unusable rows were dropped from both.

    Raises:
        RequestError: the data cannot be read, holds no usable pair, or holds unusable rows that may not be dropped.
    """
    data = config.data
    unreadable: dict[tuple[str, str], int] = {}

    def tokenized(
        source: str, split: str, invalid_rows: InvalidRows, unreadable_images: InvalidRows
    ) -> tuple[Dataset, Inspection]:
        own = data.model_copy(update={"train": source, "split": split})
        load = partial(loaded_pairs, own, invalid_rows, images=processor is not None)
        rows = in_trained_form(load, tokenizer, data.template, source)
        if processor is not None and has_images(rows):
            if data.truncation == "keep_end":
                raise RequestError(
                    "data.truncation: keep_end cuts the beginning of a prompt, where images stand, and tokens of "
                    "images are never cut; set keep_start"
                )
            pairs = tokenize_image_pairs(rows, processor(), source, unreadable_images)
            unreadable[source, split] = len(rows) - len(pairs)
        else:
            pairs = tokenize_pairs(rows, tokenizer)
        return pairs, inspect_pairs(pairs, max_length=data.max_length, truncation=data.truncation)

    def further_problems(source: str, split: str) -> list[str]:
        """What else would be refused in the rows that fit."""
        try:
            with _untold():
                _, inspection = tokenized(source, split, "drop", "refuse")
        except RequestError as refused:
            return list(refused.problems)
        return unusable(inspection, data.lost_text)

    def usable(source: str, split: str, tell: Callable[[str], None] | None = None) -> tuple[Dataset, int]:
        try:
            pairs, inspection = tokenized(source, split, data.invalid_rows, data.invalid_rows)
        except MalformedRows as malformed:
            raise RequestError([*malformed.problems, *further_problems(source, split)]) from malformed
        kept = refuse_or_drop(pairs, inspection, data.invalid_rows, data.lost_text)
        if tell is not None:
            for sentence in inspection.warnings:
                tell(sentence)
        return kept, len(pairs) - len(kept) + unreadable.get((source, split), 0)

    pairs, dropped = usable(data.train, data.split, tell)
    if data.eval is not None or data.eval_split is not None:
        heldout, heldout_dropped = usable(data.eval or data.train, data.eval_split or data.split)
        pairs, heldout = with_same_columns(pairs, heldout), with_same_columns(heldout, pairs)
        _say_what_is_in_both(pairs, heldout, data.train)
        return pairs, heldout, dropped + heldout_dropped
    if data.eval_fraction > 0:
        numbers = _held_out(pairs, data.eval_fraction, config.training.seed)
        train, heldout = (pairs.select(part) for part in numbers)
        _say_what_is_in_both(train, heldout, data.train)
        return train, heldout, dropped
    return pairs, None, dropped


@contextmanager
def _untold() -> Iterator[None]:
    """Context without messages about dropped rows, for rows that are read only to list all problems."""
    told = logging.getLogger(rewritten.__name__)
    before = told.level
    told.setLevel(logging.ERROR)
    try:
        yield
    finally:
        told.setLevel(before)


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
    """Log how many held-out pairs are trained, too: their figures show what was memorized."""
    seen = len(heldout) - int((~np.isin(_keys(heldout), _keys(train))).sum())
    if seen:
        logger.warning(
            "%s trained, too, so their figures show what was memorized; `wishbone check %s --fix FILE` writes "
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
    return keys_with_images(np.array(found, dtype=np.uint64), pairs)


def processor_of(model: ModelConfig, described: dict[str, Any]) -> Callable[[], ProcessorMixin] | None:
    """Return what loads the processor of a run's model, once, or None where the model reads no images.

    Args:
        model: `model` of the configuration.
        described: the model's config.json.
    """
    if not reads_images(described):
        return None
    return cache(partial(load_processor, model.name, model.revision, model.trust_remote_code))


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
