"""The rows of a run's steps, from pairs drawn as an epoch draws them and packed as training packs them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from wishbone.data.packing import alongside, evened, pack_rows

SIMULATED_STEPS = 100


@dataclass(frozen=True)
class Packing:
    """How the pairs of a step become rows.

    Attributes:
        pairs: of a step.
        devices: that share them.
        budget: tokens of a row.
        together: whether devices run their rows at the same time, layer by layer, because the model is divided.
    """

    pairs: int
    devices: int
    budget: int
    together: bool


def simulated_rows(tokens: Any, packing: Packing, seed: int) -> Iterator[list[int]]:
    """Yield for each step the tokens of the rows that take its time.

    They are those of the device with the most tokens. Where devices run rows together, a row takes as long as the
    longest that runs beside it.
    """
    order = np.random.default_rng(seed).permutation(len(tokens))
    for start in range(0, min(len(order), packing.pairs * SIMULATED_STEPS), packing.pairs):
        step = tokens[order[start : start + packing.pairs]].tolist()
        if packing.devices == 1:
            yield _row_tokens(step, packing.budget)
            continue
        shares = [[step[index] for index in share] for share in evened(step, packing.devices)]
        if not packing.together:
            yield _row_tokens(max(shares, key=sum), packing.budget)
            continue
        most = max(len(pack_rows(share, packing.budget)) for share in shares)
        each = [_row_tokens(share, packing.budget, most) for share in shares]
        yield [max(rows) for rows in zip_longest(*each, fillvalue=0)]


def _row_tokens(step: list[int], budget: int, most: int = 0) -> list[int]:
    """Return the tokens of the rows of a device, divided into `most` where other devices have so many."""
    rows = pack_rows(step, budget)
    rows = alongside(rows, step, most) if most else rows
    return [sum(step[index] for index in row) for row in rows]
