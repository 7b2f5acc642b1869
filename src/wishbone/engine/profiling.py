"""How much memory the rows of a run take, and which `Execution` fits: measured before the first step.

A GPU's memory is measured, not estimated. Rows of synthetic pairs are run forward and backward, and the execution is
fitted to what they take (`fitting.py`). So a row that does not fit is found before training and not at step 900. Where
memory seems to be plenty, the longest row of the run is kept whole first: if it fits, nothing else is run.

Where rows of a whole step cannot be kept, there is a choice. Of the time of a token in rows of T, recomputing its
layers takes a share 1 - n(T) / L that falls with 1 / T, and starting a row one that grows with it, so either the rows
that are kept whole are fastest or the longest ones are. Both are timed, the longest ones at a length that fills a GPU.
Rows as long as memory holds are taken only where the GPU still waits for the host. So are they where every layer is
recomputed because the run asks for it: launches are those of a short row, and nothing else of a row is shorter.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from typing import Any

import numpy as np
import torch

from wishbone.data.batch import TokenizedPair
from wishbone.engine.execution import EVERYTHING, Execution, Room
from wishbone.engine.fitting import LEAST_PROBE, MOST_ROW_TOKENS, SPARE, Usable, fit
from wishbone.engine.probe import RowProbe, Timing
from wishbone.engine.row_lengths import likely_rows, most_in_a_row
from wishbone.engine.step import PreferenceStep

LEAST_WHOLE = 512
"""Tokens of a row below which it is not worth keeping it whole."""

CAREFUL = 2.0
"""How far the estimate made before any row is run may exceed the room. Rows took a half to a third of it (measured)."""

ADAM_BYTES = 8
"""Optimizer state of one trained float32 parameter."""

logger = logging.getLogger(__name__)


def profile_rows(
    step: PreferenceStep,
    execution: Execution,
    tokens: np.ndarray[Any, Any],
    pairs_a_step: int,
    *,
    budget_fixed: bool,
    images: Sequence[TokenizedPair] = (),
) -> Execution:
    """Measure rows and return the execution to begin with. On the CPU nothing is measured or changed.

    Args:
        step: the step of the run, whose model has no gradients yet.
        execution: what the user's settings ask for.
        tokens: of each pair of the run in a row.
        pairs_a_step: pairs of one optimizer step on this process.
        budget_fixed: whether the user chose the token budget.
        images: pairs of the run that have images; empty if it has none.
    """
    device = step.policy.device
    if device.type != "cuda":
        return execution
    trained = sum(p.numel() for p in step.policy.model.parameters() if p.requires_grad)
    optimizer_state = torch.empty(ADAM_BYTES * trained, dtype=torch.uint8, device=device)
    probe = RowProbe(step, int(tokens.max()), images)
    execution = fitted(probe, execution, lambda: usable_bytes(device), tokens, pairs_a_step, budget_fixed=budget_fixed)
    del optimizer_state
    torch.cuda.empty_cache()
    return execution


def fitted(
    probe: RowProbe,
    execution: Execution,
    usable: Usable,
    tokens: np.ndarray[Any, Any],
    pairs_a_step: int,
    *,
    budget_fixed: bool,
) -> Execution:
    """Return the execution whose rows fit and, where there is a choice, take less time.

    Args:
        probe: of the run's step.
        execution, tokens, pairs_a_step, budget_fixed: as for `profile_rows`.
        usable: bytes that rows should stay below.
    """
    whole = kept_whole(probe, execution, usable, tokens, pairs_a_step, budget_fixed=budget_fixed)
    if whole is not None:
        return whole
    found = fit(
        execution,
        probe.peak,
        usable,
        layers=len(probe.policy.layers),
        longest=int(tokens.max()),
        most=most_in_a_row(tokens, pairs_a_step),
        budget_fixed=budget_fixed,
    )
    for given_up in found.given_up:
        logger.info("The longest row of this run did not fit at first: %s.", given_up)
    if not found.fits:
        logger.warning("A row of %d tokens does not fit into this GPU's memory.", found.row)
    if budget_fixed or not found.fits:
        return found.execution
    if found.execution.measures_room:
        return faster_rows(probe, found.execution, tokens, pairs_a_step)
    if found.execution == Execution.treating(found.execution.token_budget, "recompute"):
        return fuller_rows(probe, found.execution, usable, tokens, pairs_a_step)
    return found.execution


def kept_whole(
    probe: RowProbe,
    execution: Execution,
    usable: Usable,
    tokens: np.ndarray[Any, Any],
    pairs_a_step: int,
    *,
    budget_fixed: bool,
) -> Execution | None:
    """Return the execution that keeps the longest row of the run whole, where a trial shows that it fits.

    It is the one that measuring would find. Of a token's bytes in its room, those of a recomputed row stay an estimate,
    which counts only once memory has run out. None where the room is given, or is estimated or seen to be too small.

    Args:
        probe, execution, usable, tokens, pairs_a_step, budget_fixed: as for `fitted`.
    """
    estimated, layers = execution.room, len(probe.policy.layers)
    if not execution.measures_room or estimated is None:
        return None
    most = min(execution.token_budget if budget_fixed else MOST_ROW_TOKENS, most_in_a_row(tokens, pairs_a_step))
    row = max(int(tokens.max()), most)
    if row * (estimated.base + layers * estimated.layer) > CAREFUL * estimated.total:
        return None
    at_rest = probe.at_rest()
    peak = probe.peak(row, replace(execution, room=EVERYTHING))
    room = usable() - at_rest
    if peak is None or peak - at_rest > room:
        return None
    of_a_token = (peak - at_rest) / row
    base = min(estimated.base, of_a_token)
    budget = execution.token_budget if budget_fixed else max(row, LEAST_PROBE)
    return replace(execution, token_budget=budget, room=Room(room, base, (of_a_token - base) / max(layers, 1)))


def faster_rows(probe: RowProbe, execution: Execution, tokens: np.ndarray[Any, Any], pairs_a_step: int) -> Execution:
    """Return the execution with the token budget whose rows take less time: its own, that of rows kept whole, or more.

    Args:
        probe: of the run's step.
        execution: what fits; its room was measured.
        tokens: of each pair of the run in a row.
        pairs_a_step: pairs of one optimizer step.
    """
    room, layers, budget = execution.room, len(probe.policy.layers), execution.token_budget
    if room is None or room.keeps_all(budget, layers):
        return execution

    def timing(budget: int) -> tuple[Timing, float]:
        """Time of a row of usual length, and seconds a token."""
        row = likely_rows(tokens, pairs_a_step, budget).mean()
        try:
            found = probe.timing(round(row), execution)
        except torch.OutOfMemoryError:
            found = Timing(float("inf"), 0.0)
        return found, found.total / row

    def fits(budget: int) -> bool:
        return probe.peak(budget, execution) is not None

    long, long_seconds = timing(budget)
    whole = room.longest_kept(layers)
    if LEAST_WHOLE <= whole < budget and fits(whole) and timing(whole)[1] < long_seconds:
        return replace(execution, token_budget=whole)
    most = min(most_in_a_row(tokens, pairs_a_step), MOST_ROW_TOKENS, room.longest())
    return replace(execution, token_budget=most) if long.host_bound and most > budget and fits(most) else execution


def fuller_rows(
    probe: RowProbe, execution: Execution, usable: Usable, tokens: np.ndarray[Any, Any], pairs_a_step: int
) -> Execution:
    """Return the execution whose recomputed rows hold as much of a step as memory does, where the GPU waits otherwise.

    Args:
        probe: of the run's step.
        execution: what fits; it recomputes every layer.
        usable: bytes that rows should stay below.
        tokens: of each pair of the run in a row.
        pairs_a_step: pairs of one optimizer step.
    """
    budget, most = execution.token_budget, most_in_a_row(tokens, pairs_a_step)
    rows = range(ceil(most / MOST_ROW_TOKENS), ceil(most / budget))
    if not rows or not probe.timing(round(likely_rows(tokens, pairs_a_step, budget).mean()), execution).host_bound:
        return execution
    for longer in (max(ceil(most / count), int(tokens.max())) for count in rows):
        peak = probe.peak(longer, execution)
        if peak is not None and peak <= usable():
            return replace(execution, token_budget=longer)
    return execution


def usable_bytes(device: torch.device) -> int:
    """Return the bytes that this process should hold on a GPU at most.

    That is what it holds already and what is free within the limit set for it, less a share that stays free.
    """
    free, total = torch.cuda.mem_get_info(device)
    allowed = int(total * torch.cuda.get_per_process_memory_fraction(device))
    return min(free + torch.cuda.memory_reserved(device), allowed) - int(SPARE * allowed)
