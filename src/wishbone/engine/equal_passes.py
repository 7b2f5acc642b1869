"""Processes that share a sharded model run the same number of rows; those with fewer run filler rows.

Each pass gathers every layer's parameters from all processes, so a process that runs the model once more than the
others would wait forever. Each process packs its own pairs, so the number of rows differs. Before a round of rows the
processes agree on the largest number. Those with fewer rows divide their pairs into as many, and where pairs are too
few they run a synthetic row whose loss has weight 0:

    L = sum_rows loss(row) + 0 sum_fillers loss(filler)

In every layer all wait for the process with the longest row of a round, so each process runs its longest row first.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from wishbone.data.batch import PreferenceBatch
from wishbone.engine.execution import Execution
from wishbone.policy.capability import trial_pairs
from wishbone.policy.policy import Policy


def largest_over_processes(value: int, device: torch.device) -> int:
    """Return the maximum of a value over processes; all of them must call."""
    largest = torch.tensor(value, device=device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return int(largest)


def rows_to_run(policy: Policy, rows: int) -> int:
    """Return how many rows this process runs: with a sharded model, the largest number that any process has."""
    return largest_over_processes(rows, policy.device) if policy.sharded else rows


def filler_rows(policy: Policy, count: int, execution: Execution) -> list[PreferenceBatch]:
    """Return synthetic rows that this process runs after its own.

    Args:
        policy: the model that is run.
        count: how many.
        execution: how they are computed.
    """
    if not count:
        return []
    vocabulary = policy.causal_lm.config.get_text_config().vocab_size
    pair = replace(trial_pairs(vocabulary)[0], ref_chosen_logps=0.0, ref_rejected_logps=0.0)
    return [policy.collate([pair], execution)] * count


def with_least_room(execution: Execution, device: torch.device) -> Execution:
    """Return the execution with the smallest room for rows of all processes; all of them must call.

    Args:
        execution: with a token budget that is the same in all processes.
        device: of this process.
    """
    if not execution.measures_room or execution.room is None:
        return execution
    least = torch.tensor(execution.room.total, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
    return replace(execution, room=replace(execution.room, total=float(least)))
