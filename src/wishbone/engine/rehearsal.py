"""Before the first step: how much memory do this run's rows take, and how many of their activations can be kept?

A GPU's memory is not to be guessed at. Rows of made-up pairs are run forward and backward: two lengths with every
layer's activations recomputed, and the longest that fits with every layer's kept. Peak memory is linear in the tokens
of a row, so these measurements give

    peak(T, n) = fixed + T (base + n layer).

Then the largest row that the run can have is rehearsed with the room that is left. What does not fit is found out now
and not at step 900.

Where rows of a whole step cannot be kept, there is a choice. Of the time of a token in rows of T, recomputing its
layers takes a share 1 - n(T) / L that falls with 1 / T, and starting a row one that grows with it, so either the rows
that are kept whole are fastest or the longest ones are. Both are timed, the longest ones at a length that fills a GPU;
only where a GPU waits for the host all the same are they made as long as memory lets them.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from wishbone.engine.probe import Timing, Trial
from wishbone.engine.row_lengths import likely_rows, most_in_a_row
from wishbone.engine.step import PreferenceStep
from wishbone.planning.budget import MOST_ROW_TOKENS
from wishbone.policy.activations import EVERYTHING, NOTHING, Room

PROBE_TOKENS = 4096
"""Length of the longer of the two rows that are measured, in tokens; the other has half of it."""

LEAST_PROBE = 128
"""Tokens of a row below which it is not tried whether all layers can be kept."""

LEAST_WHOLE = 512
"""Tokens of a row below which it is not worth keeping it whole."""

SPARE = 0.04
"""Share of the card's memory that is left alone: fragmentation, other libraries' workspaces."""

ADAM_BYTES = 8
"""Optimizer state of one trained float32 number."""

logger = logging.getLogger(__name__)


def rehearse(step: PreferenceStep, tokens: np.ndarray[Any, Any], pairs_a_step: int, *, budget_fixed: bool) -> None:
    """Measure, then set the room of `step.policy.activations` and, unless it is fixed, `step.token_budget`.

    Args:
        step: the step of the run, whose model has no gradients yet. On the CPU nothing is measured.
        tokens: of each pair of the run in a row.
        pairs_a_step: pairs of one optimizer step on this process.
        budget_fixed: whether the user chose the token budget.
    """
    activations, device = step.policy.activations, step.policy.device
    if activations is None or device.type != "cuda":
        return
    longest, most = int(tokens.max()), most_in_a_row(tokens, pairs_a_step)
    trained = sum(p.numel() for p in step.policy.model.parameters() if p.requires_grad)
    optimizer_state = torch.empty(ADAM_BYTES * trained, dtype=torch.uint8, device=device)
    trial = Trial(step, longest)
    asked, layers = activations.room, len(activations.layers)
    given = asked in (None, EVERYTHING, NOTHING)
    row = max(longest, min(step.token_budget, most))
    room = _measured_room(trial, row)
    activations.room = asked if given else room or NOTHING
    if not budget_fixed and room is not None:
        ceiling = min(step.token_budget if asked is NOTHING else MOST_ROW_TOKENS, most)
        row = step.token_budget = max(longest, _best_budget(room, layers, step.token_budget, ceiling))
    while not trial.fits(row):
        if not _tighten(trial, row):
            if row <= longest or budget_fixed:
                logger.warning("A row of %d tokens does not fit into this GPU's memory.", row)
                break
            row = step.token_budget = max(longest, row // 2)
    if not (budget_fixed or given or activations.room is NOTHING):
        step.token_budget = _faster_budget(trial, tokens, pairs_a_step, step.token_budget)
    del optimizer_state
    torch.cuda.empty_cache()


def _measured_room(trial: Trial, row: int) -> Room | None:
    """Return the room for rows: what is free beyond what a row of no tokens takes; None if not even a short row fits.

    Where the layers' treatment is given, its rows count as the base and nothing more can be kept.
    """
    activations = trial.activations
    given = activations.room in (None, EVERYTHING, NOTHING)
    if not given:
        activations.room = NOTHING
    longer = min(PROBE_TOKENS, row)
    shorter = max(longer // 2, 1)
    try:
        short, long = trial.peak(shorter), trial.peak(longer)
    except torch.OutOfMemoryError:
        return None
    base = (long - short) / max(longer - shorter, 1)
    layer = 0.0 if given else _bytes_of_a_kept_layer(trial, longer)
    return Room(usable_bytes(trial.policy.device) - (long - base * longer), base, layer)


def _bytes_of_a_kept_layer(trial: Trial, tokens: int) -> float:
    """Return the bytes a token that a layer takes if it is kept: measured with a row of `tokens`, or one that fits."""
    activations = trial.activations
    while True:
        activations.room = EVERYTHING
        try:
            kept = trial.peak(tokens)
            break
        except torch.OutOfMemoryError:
            tokens //= 2
        if tokens < LEAST_PROBE:
            return float("inf")
    activations.room = NOTHING
    return max(kept - trial.peak(tokens), 0) / (tokens * max(len(activations.layers), 1))


def _best_budget(room: Room, layers: int, usual: int, most: int) -> int:
    """Return the tokens of a row: as many as can be kept, down to the usual number, which may have to be recomputed."""
    budget = most
    while budget > usual and room.layers(budget) < layers:
        budget = max(budget // 2, usual)
    return max(min(budget, room.tokens() // 128 * 128), 128)


def _whole_rows(room: Room, layers: int) -> int:
    """Return the tokens of the longest row that all layers can be kept of, in whole blocks."""
    return int(room.total // max(room.base + layers * room.layer, 1e-9)) // 128 * 128


def _faster_budget(trial: Trial, tokens: np.ndarray[Any, Any], pairs_a_step: int, budget: int) -> int:
    """Return a token budget whose rows of a step take less time: `budget`, that of rows kept whole, or a larger one.

    Args:
        trial: of the run's step.
        tokens: of each pair of the run in a row.
        pairs_a_step: pairs of one optimizer step.
        budget: most tokens of a row as they would be.
    """
    room, layers = trial.activations.room, len(trial.activations.layers)
    if room is None or room.layers(budget) >= layers:
        return budget

    def timing(budget: int) -> tuple[Timing, float]:
        row = likely_rows(tokens, pairs_a_step, budget).mean()
        try:
            found = trial.timing(round(row))
        except torch.OutOfMemoryError:
            found = Timing(float("inf"), 0.0)
        return found, found.total / row

    long, long_seconds = timing(budget)
    whole = _whole_rows(room, layers)
    if LEAST_WHOLE <= whole < budget and trial.fits(whole) and timing(whole)[1] < long_seconds:
        return whole
    most = min(most_in_a_row(tokens, pairs_a_step), MOST_ROW_TOKENS, room.tokens() // 128 * 128)
    return most if long.waits and most > budget and trial.fits(most) else budget


def _tighten(trial: Trial, row: int) -> bool:
    """Let rows take less: fewer layers kept, then inputs in host memory; return whether there was anything to do."""
    activations = trial.activations
    room = activations.room
    if room in (None, EVERYTHING, NOTHING) or room.layers(row) < 1:
        if activations.offload != "as needed":
            return False
        activations.offload = "always"
        trial.policy.save_memory()
        return True
    activations.room = Room(0.9 * room.total, room.base, room.layer)
    return True


def usable_bytes(device: torch.device) -> int:
    """Bytes that this process may hold on a GPU: what it holds, and what is free within the limit set for it."""
    free, total = torch.cuda.mem_get_info(device)
    allowed = int(total * torch.cuda.get_per_process_memory_fraction(device))
    return min(free + torch.cuda.memory_reserved(device), allowed) - int(SPARE * allowed)
