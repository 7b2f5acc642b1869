"""Rows of which the chat template lost text: found, named, dropped.

`tokenize_pairs` writes into the column `lost_text` what was lost; a data set without the column has lost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from wishbone.data.tokenize import LOST_COLUMN
from wishbone.errors import counted_of

LostText = Literal["refuse", "drop", "allow"]
"""What happens to rows that lost text: refuse raises, drop leaves them out, allow trains what remains of them."""

_SHOWN = 10


def lost_by_reason(tokenized: Dataset, numbers: Sequence[int] | npt.NDArray[np.int64]) -> dict[str, tuple[int, ...]]:
    """What was lost and why -> the numbers of the rows, in order; the first lost text stands in the reason.

    Args:
        tokenized: the result of `tokenize_pairs`.
        numbers: of each row, what people find it by.
    """
    rows: dict[str, list[int]] = {}
    shown: dict[str, str] = {}
    for number, lost in zip(numbers, _column(tokenized), strict=False):
        if lost is not None:
            reason, _, text = lost.partition("\n")
            shown.setdefault(reason, f"{reason}, such as {text!r}" if text else reason)
            rows.setdefault(reason, []).append(int(number))
    return {shown[reason]: tuple(found) for reason, found in rows.items()}


def rows_with_loss(tokenized: Dataset) -> npt.NDArray[np.int64]:
    """Indices of the rows that lost text, from 0, ascending."""
    return np.array([index for index, lost in enumerate(_column(tokenized)) if lost is not None], dtype=np.int64)


def lost_problems(lost: Mapping[str, Sequence[int]], rows: int, option: str) -> list[str]:
    """One problem for each reason, with the first ten rows and the remedy; `option` is the setting that allows it."""
    problems = []
    for reason, numbers in lost.items():
        problems.append(
            f"{counted_of(len(numbers), rows, 'row')}: {reason} ({few_rows(numbers)}). Use a model or a chat template "
            f"that writes it, or set {option} to drop (leave such rows out) or allow (train what remains of them)"
        )
    return problems


def few_rows(numbers: Sequence[int]) -> str:
    """The first ten numbers of rows, and how many more there are: `row 3`, `rows 3, 7`."""
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return f"row{'s' * (len(numbers) != 1)} {', '.join(map(str, numbers[:_SHOWN]))}{more}"


def _column(tokenized: Dataset) -> list[str | None]:
    if LOST_COLUMN not in tokenized.column_names:
        return []
    column = tokenized.select_columns([LOST_COLUMN]).with_format("arrow")[:][LOST_COLUMN]
    return [] if column.null_count == len(column) else column.to_pylist()
