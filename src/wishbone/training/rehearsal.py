"""Before the first step: how much memory do this run's rows take, and how many of their activations can be kept?

A GPU's memory is not to be guessed at. Rows of made-up pairs are run forward and backward, with every layer's
activations kept and with every layer's recomputed, at two lengths; peak memory is linear in the tokens of a row, so
four measurements give

    peak(T, n) = fixed + T (base + n layer).

Then the largest row that the run can have is rehearsed with the room that is left. What does not fit is found out now
and not at step 900. Weights, optimizer, random numbers and metrics stay as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from wishbone.data.batch import TokenizedPair
from wishbone.data.columns import IdColumn
from wishbone.model.activations import EVERYTHING, NOTHING, Room
from wishbone.model.policy import Policy
from wishbone.planning.budget import MOST_ROW_TOKENS
from wishbone.preference.metrics import PairMetrics
from wishbone.preference.reference import NoReference, ReferencePolicy, Stored
from wishbone.preference.remembered import Remembered
from wishbone.training.step import PreferenceStep

PROBE_TOKENS = 4096
"""Length of the longer of the two rows that are measured, in tokens; the other has half of it."""

SPARE = 0.04
"""Share of the card's memory that is left alone: fragmentation, other libraries' workspaces."""

UNKNOWN_LONGEST = 1024
"""Tokens of the longest pair of a stream that is not truncated, for want of a better number."""

ADAM_BYTES = 8
"""Optimizer state of one trained float32 number."""

logger = logging.getLogger(__name__)


def rehearse(step: PreferenceStep, longest: int, most: int, *, budget_fixed: bool) -> None:
    """Measure, then set the room of `step.policy.activations` and, unless it is fixed, `step.token_budget`.

    Args:
        step: the step of the run, whose model has no gradients yet. On the CPU nothing is measured.
        longest: tokens of the run's longest pair in a row.
        most: tokens of all pairs of a step, more than which no row has.
        budget_fixed: whether the user chose the token budget.
    """
    activations, device = step.policy.activations, step.policy.device
    if activations is None or device.type != "cuda":
        return
    trained = [p for p in step.policy.model.parameters() if p.requires_grad]
    optimizer_state = torch.empty(ADAM_BYTES * sum(p.numel() for p in trained), dtype=torch.uint8, device=device)
    trial = trial_step(step)
    asked = activations.room
    row = max(longest, min(step.token_budget, most))
    room = _measured_room(trial, trained, row, longest)
    activations.room = asked if asked in (None, EVERYTHING, NOTHING) else room or NOTHING
    if not budget_fixed and room is not None:
        ceiling = min(step.token_budget if asked is NOTHING else MOST_ROW_TOKENS, most)
        row = step.token_budget = max(longest, _best_budget(room, len(activations.layers), step.token_budget, ceiling))
    while not _fits(trial, trained, row, longest):
        if not _tighten(step.policy, row):
            if row <= longest or budget_fixed:
                logger.warning("A row of %d tokens does not fit into this GPU's memory.", row)
                break
            row = step.token_budget = max(longest, row // 2)
    del optimizer_state
    torch.cuda.empty_cache()


def trial_step(step: PreferenceStep) -> PreferenceStep:
    """Return a step like this one for pairs that no data set has."""
    return PreferenceStep(step.policy, _unrecorded(step.reference), step.objective, step.token_budget)


def _unrecorded(reference: ReferencePolicy) -> ReferencePolicy:
    """The reference for pairs that no data set has: nothing is remembered of them, and nothing is stored for them."""
    if isinstance(reference, Remembered):
        return reference.inner
    return NoReference() if isinstance(reference, Stored) else reference


def _measured_room(trial: PreferenceStep, trained: Sequence[nn.Parameter], row: int, longest: int) -> Room | None:
    """Return the room for rows: what is free beyond what a row of no tokens takes; None if not even a short row fits.

    Where the layers' treatment is given, its rows count as the base and nothing more can be kept.
    """
    activations = trial.policy.activations
    assert activations is not None
    given = activations.room in (None, EVERYTHING, NOTHING)
    longer = min(PROBE_TOKENS, row)
    slopes: list[float] = []
    fixed = 0.0
    for treatment in (activations.room,) if given else (NOTHING, EVERYTHING):
        activations.room = treatment
        try:
            shorter, peak = (_peak(trial, trained, length, longest) for length in (max(longer // 2, 1), longer))
        except torch.OutOfMemoryError:
            if not slopes:
                return None
            slopes.append(float("inf"))
            break
        slopes.append((peak - shorter) / max(longer - longer // 2, 1))
        fixed = fixed or peak - slopes[0] * longer
    layer = (slopes[-1] - slopes[0]) / max(len(activations.layers), 1)
    return Room(usable_bytes(trial.policy.device) - fixed, slopes[0], max(layer, 0.0))


def _best_budget(room: Room, layers: int, usual: int, most: int) -> int:
    """Return the tokens of a row: as many as can be kept, down to the usual number, which may have to be recomputed."""
    budget = most
    while budget > usual and room.layers(budget) < layers:
        budget = max(budget // 2, usual)
    return max(min(budget, room.tokens() // 128 * 128), 128)


def _fits(trial: PreferenceStep, trained: Sequence[nn.Parameter], row: int, longest: int) -> bool:
    try:
        _peak(trial, trained, row, longest)
    except torch.OutOfMemoryError:
        return False
    return True


def _tighten(policy: Policy, row: int) -> bool:
    """Let rows take less: fewer layers kept, then inputs in host memory; return whether there was anything to do."""
    activations = policy.activations
    assert activations is not None
    room = activations.room
    if room in (None, EVERYTHING, NOTHING) or room.layers(row) < 1:
        if activations.offload != "as needed":
            return False
        activations.offload = "always"
        policy.save_memory()
        return True
    activations.room = Room(0.9 * room.total, room.base, room.layer)
    return True


def usable_bytes(device: torch.device) -> int:
    """Bytes that this process may hold on a GPU: what it holds, and what is free within the limit set for it."""
    free, total = torch.cuda.mem_get_info(device)
    allowed = int(total * torch.cuda.get_per_process_memory_fraction(device))
    return min(free + torch.cuda.memory_reserved(device), allowed) - int(SPARE * allowed)


def _peak(trial: PreferenceStep, trained: Sequence[nn.Parameter], tokens: int, longest: int) -> int:
    """Run one row of `tokens` forward and backward and return the peak of allocated bytes; gradients are dropped."""
    device = trial.policy.device
    trial.token_budget = tokens
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        vocabulary = trial.policy.causal_lm.config.get_text_config().vocab_size
        trial.backward([made_up_row(tokens, longest, vocabulary)], PairMetrics(1.0))
        return torch.cuda.max_memory_allocated(device)
    finally:
        for parameter in trained:
            parameter.grad = None


def longest_of_stream(max_length: int | None) -> int:
    """Return the tokens that a pair of a stream may have in a shared-prefix row.

    Only the bound is known, two sequences of `max_length`; without one, a usual length is taken.
    """
    return 2 * max_length - 1 if max_length else UNKNOWN_LONGEST


def pair_tokens(dataset: Dataset, max_length: int | None) -> np.ndarray[Any, Any]:
    """Return the tokens of each pair of a tokenized data set in a shared-prefix row, [pairs].

    What completions begin with in common is counted twice.
    """
    prompt, chosen, rejected = (IdColumn(dataset, f"{name}_ids").lengths for name in ("prompt", "chosen", "rejected"))
    if max_length is None:
        return prompt + chosen + rejected
    cut = [np.minimum(tokens, max_length) for tokens in (prompt + chosen, prompt + rejected, prompt)]
    return cut[0] + cut[1] - cut[2]


def most_in_a_row(tokens: np.ndarray[Any, Any], pairs_a_step: int) -> int:
    """Return the tokens of a step of so many of the longest pairs, of a data set whose pairs have these tokens."""
    return int(np.sort(tokens)[-pairs_a_step:].sum())


def made_up_row(tokens: int, longest: int, vocabulary: int) -> list[TokenizedPair]:
    """Return pairs that fill a row of `tokens`, none longer than the run's longest: models may have no more positions.

    Prompts are of one token, as what is scored takes the most memory.
    """
    longest = min(tokens, max(longest, 3))
    sizes = [longest] * (tokens // longest) + [tokens % longest]
    return [_made_up_pair(size, vocabulary) for size in sizes if size > 2]


def _made_up_pair(row_tokens: int, vocabulary: int) -> TokenizedPair:
    half = (row_tokens - 1) // 2
    ids = [(17 + 31 * i) % vocabulary for i in range(1 + half)]
    other = [(5 + 13 * i) % vocabulary for i in range(row_tokens - 1 - half)]
    return TokenizedPair(ids, ids[:1] + other, 1, 1)
