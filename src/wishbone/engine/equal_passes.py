"""Processes among which a model is sharded run it equally often; one with fewer rows fills up.

Each pass gathers every layer's parameters from all processes, so a process that runs the model once more than the
others waits for them for ever. Rows are packed from other pairs in each process, and their number differs. So before a
round of rows the processes agree on the most that any of them has, and those with fewer run the model on a made-up row,
whose loss counts nothing:

    L = sum_rows loss(row) + 0 sum_fillers loss(filler)
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


def fillers(policy: Policy, rows: int, execution: Execution) -> list[PreferenceBatch]:
    """Return the rows that this process runs beyond its own; none where the model is not sharded.

    Args:
        policy: whose model is run.
        rows: how many this process has.
        execution: how they are computed.
    """
    if not policy.sharded:
        return []
    missing = largest_over_processes(rows, policy.device) - rows
    if not missing:
        return []
    vocabulary = policy.causal_lm.config.get_text_config().vocab_size
    pair = replace(trial_pairs(vocabulary)[0], ref_chosen_logps=0.0, ref_rejected_logps=0.0)
    return [policy.collate([pair], execution)] * missing


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
