"""Tokenized pairs that teach nothing or lost words, and the lengths of all pairs.

A pair teaches by the difference between its completions. After truncation to M tokens, with P prompt tokens, a
completion of n tokens keeps min(n, M - P) of them from its start (keep_start), or min(n, M) from its end (keep_end). A
pair has no gradient if a completion is empty (or is one token with nothing before it), or if its completions are the
same, before truncation or after. Such pairs are reported by their rows in the source, and so are pairs of which the
chat template lost text.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from datasets import Dataset

from wishbone.data.columns import (
    Counts,
    Flags,
    IdLists,
    arrow_batches,
    blank_completions,
    keys_with_images,
    rows_with_images,
)
from wishbone.data.lost_rows import LostText, few_rows, lost_by_reason, lost_problems, rows_with_loss
from wishbone.data.repeats import Keys, digest, find_repeats, pair_key
from wishbone.data.row_reader import InvalidRows
from wishbone.data.tokenize import CUT_COLUMN, EMPTY_COLUMN, ID_COLUMNS
from wishbone.errors import RequestError, counted, counted_of

logger = logging.getLogger(__name__)

Truncation = Literal["keep_start", "keep_end"]

EMPTY = "a completion is empty"
IDENTICAL = "chosen and rejected are the same"
PROMPT_TOO_LONG = "the prompt alone fills max_length"
IMAGES_TOO_LONG = "the prompt with its images alone fills max_length"
IDENTICAL_CUT = "chosen and rejected are the same after truncation"

_REMEDIES = {
    EMPTY: "write the completions",
    IDENTICAL: "correct them",
    PROMPT_TOO_LONG: "raise data.max_length or set data.truncation: keep_end",
    IMAGES_TOO_LONG: "raise data.max_length or make the images smaller",
    IDENTICAL_CUT: "raise data.max_length",
}
_MOSTLY_LONGER = 0.7
_SHOWN = 10


@dataclass(frozen=True)
class Lengths:
    """Tokens per row: percentiles, each the length of some row."""

    p50: int
    p95: int
    max: int

    @classmethod
    def of(cls, tokens: Counts) -> Lengths:
        """Of the lengths of all rows."""
        return cls(*(int(q) for q in np.percentile(tokens, [50, 95, 100], method="inverted_cdf")))


@dataclass(frozen=True)
class Inspection:
    """What `inspect_pairs` found.

    Attributes:
        rows: rows inspected.
        problems: rows that teach nothing: reason -> their `source_row`s. Each row has one reason.
        invalid: indices of those rows in the tokenized data set, from 0, ascending.
        lost: rows of which the chat template lost text: what and why -> their `source_row`s.
        lengths: tokens of "prompt", "chosen", "rejected", and of the "pair": prompt + chosen + rejected.
        truncated_rows: rows with a sequence (prompt + one completion) longer than max_length.
        truncated_tokens: tokens cut off, summed over the chosen and the rejected sequences.
        separate_tokens: tokens of all pairs after truncation, as two sequences per pair.
        shared_tokens: the same, with the prompt of a pair counted once.
        chosen_longer: share of the pairs whose chosen completion is longer than the rejected one.
        duplicates: `source_row`s of pairs that occurred before.
        conflicts: `source_row`s of two pairs with the same prompt, and chosen and rejected swapped.
        warnings: what the user should know of the rows that are trained, one sentence each.
    """

    rows: int
    problems: Mapping[str, tuple[int, ...]]
    invalid: tuple[int, ...]
    lost: Mapping[str, tuple[int, ...]]
    lengths: Mapping[str, Lengths]
    truncated_rows: int
    truncated_tokens: int
    separate_tokens: int
    shared_tokens: int
    chosen_longer: float
    duplicates: tuple[int, ...]
    conflicts: tuple[tuple[int, int], ...]
    warnings: tuple[str, ...]


def inspect_pairs(tokenized: Dataset, *, max_length: int | None, truncation: Truncation) -> Inspection:
    """Find rows that teach nothing and pairs that repeat or contradict others, and measure lengths.

    Args:
        tokenized: the result of `wishbone.data.tokenize.tokenize_pairs` for a `Dataset`.
        max_length: tokens to which a sequence (prompt + one completion) is truncated; None: no truncation.
        truncation: which end is kept.

    Raises:
        RequestError: it is a stream, or has no rows.
    """
    if not isinstance(tokenized, Dataset) or len(tokenized) == 0:
        raise RequestError("a stream or a data set without rows cannot be inspected; give a data set with rows")
    keeps_start = truncation == "keep_start"
    limit = np.iinfo(np.int64).max if max_length is None else max_length
    read = [_read([*map(IdLists, sides)], limit, keeps_start) for sides in arrow_batches(tokenized, ID_COLUMNS)]
    prompt, chosen, rejected, same, same_when_cut, keys = (np.concatenate(parts) for parts in zip(*read, strict=True))

    full, images = _room(prompt, limit, keeps_start) == 0, rows_with_images(tokenized)
    unscored = (prompt == 0).astype(np.int64)  # without a prompt, nothing predicts the first token
    numbers = _source_rows(tokenized)
    problems, invalid = _first_reasons(
        {
            EMPTY: (chosen <= unscored)
            | (rejected <= unscored)
            | blank_completions(tokenized, "chosen")
            | blank_completions(tokenized, "rejected")
            | _lost_completions(tokenized),
            IDENTICAL: same,
            PROMPT_TOO_LONG: full & ~images,
            IMAGES_TOO_LONG: full & images,
            IDENTICAL_CUT: same_when_cut,
        },
        numbers,
    )
    cut_chosen, cut_rejected = np.maximum(prompt + chosen - limit, 0), np.maximum(prompt + rejected - limit, 0)
    separate = 2 * prompt + chosen + rejected - cut_chosen - cut_rejected
    kept_prompt = np.minimum(prompt, limit) if keeps_start else np.maximum(prompt - cut_chosen, 0)
    shared = separate - np.where(keeps_start | (cut_chosen == cut_rejected), kept_prompt, 0)
    repeats = find_repeats(keys_with_images(keys, tokenized))
    inspection = Inspection(
        rows=len(tokenized),
        problems=problems,
        invalid=tuple(np.flatnonzero(invalid).tolist()),
        lost=lost_by_reason(tokenized, numbers),
        lengths={
            "prompt": Lengths.of(prompt),
            "chosen": Lengths.of(chosen),
            "rejected": Lengths.of(rejected),
            "pair": Lengths.of(prompt + chosen + rejected),
        },
        truncated_rows=int(np.count_nonzero(cut_chosen + cut_rejected)),
        truncated_tokens=int((cut_chosen + cut_rejected).sum()),
        separate_tokens=int(separate.sum()),
        shared_tokens=int(shared.sum()),
        chosen_longer=float((chosen > rejected).mean()),
        duplicates=tuple(int(numbers[later]) for _, later in repeats.duplicates),
        conflicts=tuple((int(numbers[one]), int(numbers[other])) for one, other in repeats.contradictions),
        warnings=(),
    )
    return replace(inspection, warnings=tuple(_warnings(inspection, tokenized)))


def unusable(inspection: Inspection, lost_text: LostText = "refuse") -> list[str]:
    """Return one problem for each reason why rows teach nothing or lost text, with ten rows and the remedy."""
    lost = lost_problems(inspection.lost, inspection.rows, "data.lost_text") if lost_text == "refuse" else []
    return lost + [
        f"{counted_of(len(rows), inspection.rows, 'row')}: {reason} ({few_rows(rows)}). To train without them, set "
        f"data.invalid_rows: drop; otherwise {_REMEDIES[reason]}"
        for reason, rows in inspection.problems.items()
    ]


def refuse_or_drop(
    tokenized: Dataset, inspection: Inspection, policy: InvalidRows, lost_text: LostText = "refuse"
) -> Dataset:
    """Refuse or drop rows that teach nothing, and rows of which the chat template lost text.

    Args:
        tokenized: the data set that was inspected.
        inspection: the result of `inspect_pairs`.
        policy: `data.invalid_rows` of the configuration: "refuse" raises, "drop" returns the other rows.
        lost_text: `data.lost_text` of the configuration, for rows that lost text; "allow" keeps them.

    Raises:
        RequestError: there are such rows and they are refused (one problem per reason, with the first ten rows), or
            there are no other rows.
    """
    lost = rows_with_loss(tokenized) if inspection.lost and lost_text != "allow" else np.zeros(0, dtype=np.int64)
    unwanted = np.union1d(np.asarray(inspection.invalid, dtype=np.int64), lost)
    refused = (inspection.invalid and policy == "refuse") or (len(lost) and lost_text == "refuse")
    if refused:
        raise RequestError(unusable(inspection, lost_text))
    if len(unwanted) == inspection.rows:
        found = [*inspection.problems.items(), *(inspection.lost.items() if lost_text == "drop" else ())]
        reasons = "; ".join(f"{reason} ({few_rows(rows)})" for reason, rows in found)
        raise RequestError(f"every row would be dropped, and none is left to train on: {reasons}. Correct the rows")
    for reason, rows in inspection.problems.items():
        dropped = counted_of(len(rows), inspection.rows, "row", "is", "are")
        logger.warning("%s dropped: %s (%s).", dropped, reason, few_rows(rows))
    for reason, rows in inspection.lost.items():
        done = "trained without it" if lost_text == "allow" else "dropped"
        which = counted_of(len(rows), inspection.rows, "row", "is", "are")
        logger.warning("%s %s: %s (%s).", which, done, reason, few_rows(rows))
    return tokenized.select(np.setdiff1d(np.arange(inspection.rows), unwanted)) if len(unwanted) else tokenized


def _lost_completions(tokenized: Dataset) -> Flags:
    if EMPTY_COLUMN not in tokenized.column_names:
        return np.zeros(len(tokenized), dtype=bool)
    return np.asarray(tokenized.with_format("numpy")[EMPTY_COLUMN][:], dtype=bool)


def _source_rows(tokenized: Dataset) -> Counts:
    if "source_row" not in tokenized.column_names:
        return np.arange(1, len(tokenized) + 1)
    return np.asarray(tokenized.with_format("numpy")["source_row"][:])


def _first_reasons(reasons: Mapping[str, Flags], numbers: Counts) -> tuple[dict[str, tuple[int, ...]], Flags]:
    """Source rows by the first reason that holds for them, and flags of the rows for which one holds."""
    problems = {}
    invalid = np.zeros(len(numbers), dtype=bool)
    for reason, flags in reasons.items():
        if (new := flags & ~invalid).any():
            problems[reason] = tuple(numbers[new].tolist())
        invalid |= flags
    return problems, invalid


def _room(prompt: Counts, limit: int, keeps_start: bool) -> Counts:
    """Tokens that a completion may have after a prompt of some tokens."""
    return np.maximum(limit - prompt, 0) if keeps_start else np.full_like(prompt, limit)


def _read(sides: Sequence[IdLists], limit: int, keeps_start: bool) -> tuple[Counts, Counts, Counts, Flags, Flags, Keys]:
    """Of some rows: tokens of each side, whether the completions are the same, and when truncated, and keys."""
    prompt, chosen, rejected = (ids.lengths for ids in sides)
    room = _room(prompt, limit, keeps_start)
    kept_chosen, kept_rejected = np.minimum(chosen, room), np.minimum(rejected, room)
    alike_when_cut = (kept_chosen == kept_rejected) & (kept_chosen < np.maximum(chosen, rejected))
    _, chosens, rejecteds = sides
    same = _same_tokens(chosens, rejecteds, np.where(chosen == rejected, chosen, 0))
    compared = np.where(alike_when_cut, kept_chosen, 0)
    same_when_cut = _same_tokens(chosens, rejecteds, compared, from_end=not keeps_start)
    keys = [pair_key(*(digest(ids[row].data) for ids in sides)) for row in range(len(prompt))]
    return prompt, chosen, rejected, same, same_when_cut, np.array(keys, dtype=np.uint64)


def _same_tokens(chosen: IdLists, rejected: IdLists, compared: Counts, *, from_end: bool = False) -> Flags:
    """Rows whose completions have the same first (or last) `compared` tokens; none where `compared` is 0."""
    same = np.zeros(len(compared), dtype=bool)
    for row in np.flatnonzero(compared).tolist():
        part = slice(-compared[row], None) if from_end else slice(compared[row])
        same[row] = np.array_equal(chosen[row][part], rejected[row][part])
    return same


def _warnings(found: Inspection, tokenized: Dataset) -> Iterator[str]:
    if found.truncated_rows:
        share = found.truncated_tokens / (found.separate_tokens + found.truncated_tokens)
        yield (
            f"{counted_of(found.truncated_rows, found.rows, 'row', 'is', 'are')} longer than max_length; truncation "
            f"cuts {counted(found.truncated_tokens, 'token')} ({share:.1%})"
        )
    if found.duplicates:
        repeated = counted(len(found.duplicates), "pair")
        yield f"{repeated} occurred before ({few_rows(found.duplicates)}); each counts twice"
    if found.conflicts:
        places = ", ".join(f"{a} and {b}" for a, b in found.conflicts[:_SHOWN])
        contradict = "pair contradicts" if len(found.conflicts) == 1 else "pairs contradict"
        yield (f"{len(found.conflicts)} {contradict} another pair, which prefers the other completion (rows {places})")
    if found.chosen_longer >= _MOSTLY_LONGER:
        yield (
            f"in {found.chosen_longer:.0%} of the pairs the chosen completion is the longer one, so the model may "
            "learn to write longer; a length-normalized loss (simpo, rdpo) or preference.ld_alpha reduces that"
        )
    if CUT_COLUMN in tokenized.column_names:
        cut = np.count_nonzero(tokenized.with_format("numpy")[CUT_COLUMN][:])
        if cut:
            rows = counted(int(cut), "row")
            yield f"in {rows} the end of the prompt is tokenized differently before a completion; that begins there"
