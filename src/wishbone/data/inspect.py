"""What is wrong with a data set of pairs once it is tokens, and how long its rows are.

A pair teaches by the difference between its completions. After truncation to M tokens, with P prompt tokens, a
completion of n tokens keeps min(n, M - P) of them from its start (keep_start), or min(n, M) from its end (keep_end). No
gradient is left in a pair whose completion is empty (or is one token with nothing before it), or whose two completions
are the same, before truncation or after. Such rows are named by where they stand in the source.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from datasets import Dataset

from wishbone.data.columns import Counts, Flags, IdColumn, blank_completions
from wishbone.data.rows import InvalidRows
from wishbone.data.tokenize import CUT_COLUMN, ID_COLUMNS
from wishbone.errors import RequestError

logger = logging.getLogger(__name__)

Truncation = Literal["keep_start", "keep_end"]

EMPTY = "a completion is empty"
IDENTICAL = "chosen and rejected are the same"
PROMPT_TOO_LONG = "the prompt alone fills max_length"
IDENTICAL_CUT = "chosen and rejected are the same after truncation"

_REMEDIES = {
    EMPTY: "write the completions",
    IDENTICAL: "correct them",
    PROMPT_TOO_LONG: "raise data.max_length or set data.truncation: keep_end",
    IDENTICAL_CUT: "raise data.max_length",
}
_MOSTLY_LONGER = 0.7
_SHOWN = 10


@dataclass(frozen=True)
class Lengths:
    """Tokens a row: mean and percentiles."""

    mean: float
    p5: int
    p50: int
    p95: int
    p99: int
    max: int

    @classmethod
    def of(cls, tokens: Counts) -> Lengths:
        """Measured over rows; a percentile is the length of a row that exists."""
        quantiles = np.percentile(tokens, [5, 50, 95, 99, 100], method="inverted_cdf")
        return cls(float(tokens.mean()), *(int(q) for q in quantiles))


@dataclass(frozen=True)
class Inspection:
    """What `inspect_pairs` found.

    Attributes:
        rows: rows looked at.
        problems: rows that cannot teach: reason -> their `source_row`s. A row is named under one reason only.
        invalid: where those rows stand in the tokenized data set, from 0, ascending.
        lengths: tokens of "prompt", "chosen", "rejected", and of the "pair": prompt + chosen + rejected.
        truncated_rows: rows of which a sequence (prompt + one completion) is longer than max_length.
        truncated_tokens: tokens cut off, summed over the chosen and the rejected sequences.
        separate_tokens: tokens left in all pairs, as two sequences each.
        shared_tokens: tokens left in all pairs when the prompt of both sequences is counted once.
        chosen_longer: share of the pairs whose chosen completion is the longer one.
        duplicates: `source_row`s of pairs that occurred before.
        conflicts: `source_row`s of two pairs with the same prompt, and chosen and rejected swapped.
        warnings: what a person should know before training, a sentence each.
    """

    rows: int
    problems: Mapping[str, tuple[int, ...]]
    invalid: tuple[int, ...]
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
    """Looks for rows that cannot teach and for pairs that repeat or contradict others, and measures lengths.

    Args:
        tokenized: what `wishbone.data.tokenize.tokenize_pairs` made of a `Dataset`.
        max_length: tokens a sequence (prompt + one completion) is truncated to; None: it is not.
        truncation: which end is kept.

    Raises:
        RequestError: it is a stream, or has no rows.
    """
    if not isinstance(tokenized, Dataset) or len(tokenized) == 0:
        raise RequestError("only a data set with rows that can all be looked at is inspected, not a stream or nothing")
    prompts, chosens, rejecteds = (IdColumn(tokenized, name) for name in ID_COLUMNS)
    prompt, chosen, rejected = prompts.lengths, chosens.lengths, rejecteds.lengths
    longest = int((prompt + np.maximum(chosen, rejected)).max())
    limit = longest + 1 if max_length is None else max_length
    keeps_start = truncation == "keep_start"
    room = np.maximum(limit - prompt, 0) if keeps_start else np.full_like(prompt, limit)
    kept_chosen, kept_rejected = np.minimum(chosen, room), np.minimum(rejected, room)
    alike_when_cut = (kept_chosen == kept_rejected) & (kept_chosen < np.maximum(chosen, rejected))

    unscored = (prompt == 0).astype(np.int64)  # the first token of all has nothing to be predicted from
    numbers = _source_rows(tokenized)
    problems, invalid = _first_reasons(
        {
            EMPTY: (chosen <= unscored)
            | (rejected <= unscored)
            | blank_completions(tokenized, "chosen")
            | blank_completions(tokenized, "rejected"),
            IDENTICAL: _same_tokens(chosens, rejecteds, np.where(chosen == rejected, chosen, 0)),
            PROMPT_TOO_LONG: room == 0,
            IDENTICAL_CUT: _same_tokens(
                chosens, rejecteds, np.where(alike_when_cut, kept_chosen, 0), from_end=not keeps_start
            ),
        },
        numbers,
    )
    cut_chosen, cut_rejected = np.maximum(prompt + chosen - limit, 0), np.maximum(prompt + rejected - limit, 0)
    separate = 2 * prompt + chosen + rejected - cut_chosen - cut_rejected
    kept_prompt = np.minimum(prompt, limit) if keeps_start else np.maximum(prompt - cut_chosen, 0)
    shared = separate - np.where(keeps_start | (cut_chosen == cut_rejected), kept_prompt, 0)
    duplicates, conflicts = _repeated((prompts, chosens, rejecteds), numbers)
    inspection = Inspection(
        rows=len(tokenized),
        problems=problems,
        invalid=tuple(np.flatnonzero(invalid).tolist()),
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
        duplicates=duplicates,
        conflicts=conflicts,
        warnings=(),
    )
    return replace(inspection, warnings=tuple(_warnings(inspection, tokenized)))


def unteachable(inspection: Inspection) -> list[str]:
    """Return one problem for each reason for which rows cannot teach, with the first ten rows and the remedy."""
    return [
        f"{len(rows)} of {inspection.rows} rows: {reason} (rows {_few(rows)}). To train without them, set "
        f"data.invalid_rows: drop; else {_REMEDIES[reason]}"
        for reason, rows in inspection.problems.items()
    ]


def refuse_or_drop(tokenized: Dataset, inspection: Inspection, policy: InvalidRows) -> Dataset:
    """Answers the rows that cannot teach: "refuse" raises, "drop" leaves them out.

    Args:
        tokenized: the data set that was inspected.
        inspection: what was found.
        policy: `data.invalid_rows` of the configuration.

    Raises:
        RequestError: there are such rows and the policy is "refuse" (one problem a reason, with the first ten rows), or
            there are no others.
    """
    if not inspection.invalid:
        return tokenized
    if policy == "refuse" or len(inspection.invalid) == inspection.rows:
        raise RequestError(unteachable(inspection))
    for reason, rows in inspection.problems.items():
        logger.warning("%d of %d rows are left out: %s (rows %s).", len(rows), inspection.rows, reason, _few(rows))
    return tokenized.select(np.setdiff1d(np.arange(inspection.rows), inspection.invalid))


def _source_rows(tokenized: Dataset) -> Counts:
    if "source_row" not in tokenized.column_names:
        return np.arange(1, len(tokenized) + 1)
    return np.asarray(tokenized.with_format("numpy")["source_row"][:])


def _first_reasons(reasons: Mapping[str, Flags], numbers: Counts) -> tuple[dict[str, tuple[int, ...]], Flags]:
    """The source rows under the first reason that holds for them, and the rows for which any does."""
    problems = {}
    invalid = np.zeros(len(numbers), dtype=bool)
    for reason, flags in reasons.items():
        if (new := flags & ~invalid).any():
            problems[reason] = tuple(numbers[new].tolist())
        invalid |= flags
    return problems, invalid


def _same_tokens(chosen: IdColumn, rejected: IdColumn, compared: Counts, *, from_end: bool = False) -> Flags:
    """Rows whose completions agree in as many tokens as are `compared` at one end; no row where that is 0."""
    same = np.zeros(len(compared), dtype=bool)
    for row in np.flatnonzero(compared).tolist():
        part = slice(-compared[row], None) if from_end else slice(compared[row])
        same[row] = np.array_equal(chosen[row][part], rejected[row][part])
    return same


def _repeated(columns: Sequence[IdColumn], numbers: Counts) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Source rows of pairs that occurred before, and of pairs that occurred before the other way round."""
    seen: dict[tuple[bytes, bytes, bytes], int] = {}
    duplicates, conflicts = [], []
    for number, prompt, chosen, rejected in zip(numbers.tolist(), *(c.digests() for c in columns), strict=True):
        if (prompt, chosen, rejected) in seen:
            duplicates.append(number)
            continue
        if chosen != rejected and (other := seen.get((prompt, rejected, chosen))) is not None:
            conflicts.append((other, number))
        seen[prompt, chosen, rejected] = number
    return tuple(duplicates), tuple(conflicts)


def _warnings(found: Inspection, tokenized: Dataset) -> Iterator[str]:
    if found.truncated_rows:
        share = found.truncated_tokens / (found.separate_tokens + found.truncated_tokens)
        yield (
            f"{found.truncated_rows} of {found.rows} rows are longer than max_length: truncation cuts "
            f"{found.truncated_tokens} tokens ({share:.1%})"
        )
    if found.duplicates:
        yield f"{len(found.duplicates)} pairs occurred before (rows {_few(found.duplicates)}); they count twice"
    if found.conflicts:
        rows = ", ".join(f"{a} and {b}" for a, b in found.conflicts[:_SHOWN])
        yield f"{len(found.conflicts)} pairs contradict another, which prefers the other completion (rows {rows})"
    if found.chosen_longer >= _MOSTLY_LONGER:
        yield (
            f"the chosen completion is the longer one in {found.chosen_longer:.0%} of the pairs: the model may learn "
            "to write at length; a loss normalized by length (simpo, rdpo) or preference.ld_alpha counters that"
        )
    if CUT_COLUMN in tokenized.column_names:
        cut = np.count_nonzero(tokenized.with_format("numpy")[CUT_COLUMN][:])
        if cut:
            yield f"in {cut} rows the end of the prompt is tokenized differently before a completion and is left out"


def _few(rows: Sequence[int]) -> str:
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return ", ".join(map(str, rows[:_SHOWN])) + more
