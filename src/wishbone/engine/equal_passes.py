"""Processes among which a model is sharded run it equally often; one with fewer rows fills up.

Each pass gathers every layer's parameters from all processes, so a process that runs the model once more than the
others waits for them for ever. Rows are packed from other pairs in each process, and their number differs. So before a
round of rows the processes agree on the most that any of them has. Those with fewer divide their pairs into as many,
and where pairs are too few they run the model on a made-up row, whose loss counts nothing:

    L = sum_rows loss(row) + 0 sum_fillers loss(filler)

Layer by layer all wait for the one with the longest row of a round, so each process runs its longest row first.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from wishbone.data.batch import PreferenceBatch
from wishbone.engine.execution import Execution
from wishbone.policy.capability import trial_pairs
from wishbone.policy.policy import Policy


def largest_over_processes(value: int, device: torch.device) -> int:
    """Return the largest of a value over processes; all of them must call."""
    largest = torch.tensor(value, device=device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return int(largest)


def most_rows(policy: Policy, rows: int) -> int:
    """Return how many rows the processes of a sharded model run: the most that one has; else this one's own."""
    return largest_over_processes(rows, policy.device) if policy.sharded else rows


def fillers(policy: Policy, count: int, execution: Execution) -> list[PreferenceBatch]:
    """Return made-up rows that this process runs beyond its own.

    Args:
        policy: whose model is run.
        count: how many.
        execution: how they are computed.
    """
    if not count:
        return []
    vocabulary = policy.causal_lm.config.get_text_config().vocab_size
    pair = replace(trial_pairs(vocabulary)[0], ref_chosen_logps=0.0, ref_rejected_logps=0.0)
    return [policy.collate([pair], execution)] * count


def agreed(execution: Execution, device: torch.device) -> Execution:
    """Return the execution with the least room that any process has for rows; all of them must call.

    Args:
        execution: whose token budget is the same in all processes.
        device: of this process.
    """
    if not execution.measures_room or execution.room is None:
        return execution
    least = torch.tensor(execution.room.total, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
    return replace(execution, room=replace(execution.room, total=float(least)))
