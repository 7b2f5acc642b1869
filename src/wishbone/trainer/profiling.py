"""Before its first step, a run chooses how rows are computed.

Profiling measures how long rows may be and which activations are kept, and records CUDA graphs where they pay. A
run that continues on the same machine takes what its checkpoint says (`execution_in_checkpoint.py`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import Dataset

from wishbone.data.batch import TokenizedPair
from wishbone.engine.equal_passes import with_least_room
from wishbone.engine.execution import Execution
from wishbone.engine.graph_selection import passes_to_come, with_cuda_graphs
from wishbone.engine.profiling import profile_rows
from wishbone.engine.row_lengths import longest_of_stream, pair_tokens
from wishbone.engine.step import PreferenceStep
from wishbone.phases import phase
from wishbone.trainer.arguments import DPOConfig
from wishbone.trainer.collation import Collation
from wishbone.trainer.execution_in_checkpoint import Recorded

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunAhead:
    """What is known of a run before its first step.

    Attributes:
        rows: its data set.
        collation: how they become batches.
        first: pairs of its first step.
        steps: how many are left.
        recorded: how rows were computed in the checkpoint that it continues from, or None.
    """

    rows: Any
    collation: Collation
    first: list[TokenizedPair]
    steps: int
    recorded: Recorded | None


def profiled(step: PreferenceStep, execution: Execution, args: DPOConfig, run: RunAhead) -> Execution:
    """Measure how much memory rows take, and record CUDA graphs where that pays; return how rows are computed.

    A run that continues on the same machine computes rows as before. Rows of a sharded model are not tried out,
    because one that does not fit in one process would leave the others waiting.
    """
    if step.policy.sharded:
        return with_least_room(execution, step.policy.device)
    pairs = max(args.train_batch_size * args.gradient_accumulation_steps, len(run.first))
    known, images = isinstance(run.rows, Dataset), run.collation.images
    if known and images is not None:
        tokens = images.tokens(args.max_length)
    elif known:
        tokens = pair_tokens(run.rows, args.max_length)
    else:
        tokens = np.full(pairs, longest_of_stream(args.max_length))
    graphs = args.cuda_graphs
    if run.recorded is not None:
        on_cpu = step.policy.device.type == "cpu"  # there memory is shared, and recomputing changes no bit
        room = execution.room if on_cpu else run.recorded.execution.room
        execution, graphs = replace(run.recorded.execution, room=room), "on" if run.recorded.padded else "off"
    else:
        fixed = args.token_budget != "auto"
        probed = [*run.collation.longest, *run.collation.tried]
        with phase("profiling"):
            execution = profile_rows(step, execution, tokens, pairs, budget_fixed=fixed, images=probed)
    if images is not None and graphs != "off":
        if graphs == "on":
            logger.warning("No CUDA graph is recorded, because rows have images.")
        graphs = "off"
    if graphs == "off" or not known:
        return execution
    passes = passes_to_come(step, run.first, seen_again=run.steps * pairs > len(tokens))
    before = None if run.recorded is None else run.recorded.padded
    return with_cuda_graphs(
        step, execution, tokens, pairs, wanted=graphs, steps=run.steps, passes=passes, before=before
    )
