"""Which execution fits a device, from what rows take there: measured by profiling, or estimated by the planner.

Peak memory is linear in the tokens of a row, so three rows tell what any row takes: two lengths with every layer
recomputed and the longest that fits with every layer kept.

    peak(T, n) = fixed + T (base + n layer)        room = usable - fixed

Rows become as long as they can be kept whole. Then the longest row of the run is tried and, if it does not fit,
something is given up (`Execution.smaller`) until it does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from wishbone.engine.execution import EVERYTHING, NOTHING, Execution, Room

PROBE_TOKENS = 4096
"""Tokens of the longer of the two rows that are measured with every layer recomputed; the other has half of them."""

LEAST_PROBE = 128
"""Shortest row, in tokens, that is tried with every layer kept."""

MOST_ROW_TOKENS = 32768
"""Longest row, in tokens, that is chosen where memory would keep more: it fills any GPU."""

SPARE = 0.04
"""Share of a GPU's memory that is left free: memory fragmentation, workspaces of other libraries."""

Peak = Callable[[int, Execution], float | None]
"""Peak of allocated bytes of a row of so many tokens, or None where it does not fit."""

Usable = Callable[[], float]
"""Bytes that peaks should stay below, asked after rows were run: loading their kernels takes memory."""


@dataclass(frozen=True)
class Fit:
    """The outcome.

    Attributes:
        execution: what was chosen.
        row: tokens of the longest row that has to fit.
        fits: whether it does; if not, nothing is left to give up.
        given_up: what was given up for it, in words.
    """

    execution: Execution
    row: int
    fits: bool
    given_up: tuple[str, ...] = ()


def fit(
    execution: Execution,
    peak: Peak,
    usable: Usable,
    *,
    layers: int,
    longest: int,
    most: int,
    budget_fixed: bool,
) -> Fit:
    """Return the execution whose rows fit.

    Args:
        execution: what the user's settings ask for; its budget is the usual one, and its room is kept where it is given
            (`Execution.measures_room`).
        peak: what a row takes.
        usable: bytes that `peak` should stay below.
        layers: layers of the model.
        longest: tokens of the run's longest pair.
        most: tokens of the pairs of a step; no row has more.
        budget_fixed: whether the user chose the token budget.
    """
    usual, asked = execution.token_budget, execution.room
    row = max(longest, min(usual, most))
    room = measured_room(execution, peak, usable, layers=layers, row=row)
    if execution.measures_room:
        execution = replace(execution, room=room or NOTHING)
    if not budget_fixed and room is not None:
        ceiling = min(usual if asked == NOTHING else MOST_ROW_TOKENS, most)
        row = max(longest, longest_rows(room, layers, usual, ceiling))
        execution = replace(execution, token_budget=row)
    given_up: list[str] = []
    while peak(row, execution) is None:
        less = execution.smaller([row], row if budget_fixed else longest, layers)
        if less is None:
            return Fit(execution, row, False, tuple(given_up))
        execution = less[0]
        given_up.append(less[1])
        row = max(longest, min(row, execution.token_budget))
    return Fit(execution, row, True, tuple(given_up))


def measured_room(execution: Execution, peak: Peak, usable: Usable, *, layers: int, row: int) -> Room | None:
    """Return the room for rows: usable bytes minus those of a row of no tokens; None if no short row fits.

    Where the treatment of layers is given, rows so treated count as the base and no further layer can be kept.

    Args:
        execution, peak, usable, layers: as for `fit`.
        row: tokens of the longest row; no longer one is run.
    """
    recomputing = replace(execution, room=NOTHING) if execution.measures_room else execution
    longer = min(PROBE_TOKENS, row)
    shorter = max(longer // 2, 1)
    short, long = peak(shorter, recomputing), peak(longer, recomputing)
    if short is None or long is None:
        return None
    base = (long - short) / max(longer - shorter, 1)
    layer = _bytes_of_a_kept_layer(recomputing, peak, layers, longer, long) if execution.measures_room else 0.0
    return Room(usable() - (long - base * longer), base, layer)


def _bytes_of_a_kept_layer(
    recomputing: Execution, peak: Peak, layers: int, tokens: int, recomputed: float | None
) -> float:
    """Bytes a token that a kept layer takes, measured with a row of `tokens` or the longest half of it that fits.

    `recomputed` is the peak of a row of `tokens` with every layer recomputed.
    """
    keeping = replace(recomputing, room=EVERYTHING)
    while (kept := peak(tokens, keeping)) is None:
        tokens //= 2
        if tokens < LEAST_PROBE:
            return float("inf")
        recomputed = None
    if recomputed is None:
        recomputed = peak(tokens, recomputing)
    return max(kept - (recomputed or 0.0), 0) / (tokens * max(layers, 1))


def longest_rows(room: Room, layers: int, usual: int, most: int) -> int:
    """Return a token budget: as many tokens as can be kept, but at least the usual number, which may be recomputed."""
    budget = most
    while budget > usual and not room.keeps_all(budget, layers):
        budget = max(budget // 2, usual)
    return max(min(budget, room.longest()), 128)
