"""Which row lengths are recorded as CUDA graphs (`policy/cuda_graphs.py`), and whether that pays.

A row is padded to the next length that has a graph. Rows of steps to come are drawn from the data set, and the few
lengths are recorded that pad them least. Recording takes time and memory. So it is done only where the GPU waits for
the host, which the timing of one row shows, and where the run gains more time than recording takes, which shows once
the usual length is recorded and replayed. A short run records fewer lengths and pads more: with R rows to come, t_run
and t_replay seconds of a row, s of a recording and p_m the padded over the plain tokens with m lengths,

    m = argmin ( m s + R t_replay p_m ),        recorded where that is below R t_run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from wishbone.data.batch import TokenizedPair
from wishbone.engine.execution import Execution
from wishbone.engine.probe import RowProbe
from wishbone.engine.row_lengths import likely_rows, most_pairs_in_a_row
from wishbone.engine.step import PreferenceStep
from wishbone.fused.parts import text_layers
from wishbone.phases import phase
from wishbone.policy.cuda_graphs import UNDO, CudaGraphs
from wishbone.policy.long_sequences import positions_depend_on_length
from wishbone.policy.model_state import ModelState
from wishbone.policy.policy import Policy
from wishbone.reference.cache import CachedReference
from wishbone.reference.reference import AdapterDisabled, NoReference

RECORDED = 24
"""Most lengths that are recorded."""

LEAST_PADDING = 1.01
"""Tokens with padding over tokens without, at or below which no further length is recorded."""

LEAST_ROWS = 24
"""Rows to come below which finding out whether recording pays takes longer than it could save."""

PADDING = 1
"""Documents of a row that are its padding."""

HELD_ROWS = 2
"""Rows whose activations are in memory at a time: those of the recordings, and those of a row that is run."""

logger = logging.getLogger(__name__)


def with_cuda_graphs(
    step: PreferenceStep,
    execution: Execution,
    tokens: np.ndarray[Any, Any],
    pairs_a_step: int,
    *,
    wanted: str,
    steps: int,
    passes: Sequence[PreferenceStep] = (),
) -> Execution:
    """Return `execution` with CUDA graphs of the lengths that rows of the run will have, or as it is.

    Args:
        step: its model has no gradients yet.
        execution: what profiling found.
        tokens: of each pair of the run in a row.
        pairs_a_step: pairs of one optimizer step on this process.
        wanted: "auto", or "on" to record wherever it is possible and to say so where it is not.
        steps: optimizer steps that the run still has.
        passes: what `passes_to_come` says; empty for the step alone.
    """
    policy = step.policy
    rows = likely_rows(tokens, pairs_a_step, execution.token_budget)
    choices = lengths_by_count(rows, policy.row_multiple)
    lengths = choices[-1].lengths
    obstacle = _obstacle(policy, execution, lengths[-1])
    if obstacle is not None:
        if wanted == "on":
            logger.warning("No CUDA graph is recorded, because %s.", obstacle)
        return execution
    rows_to_come = steps * pairs_a_step * tokens.mean() / rows.mean()
    if wanted == "auto" and rows_to_come < LEAST_ROWS:
        return execution
    probes = [RowProbe(one, int(tokens.max())) for one in passes or [step]]
    usual = min(length for length in lengths if length >= np.median(rows))
    run = probes[0].timing(usual, execution) if wanted == "auto" else None
    if run is not None and not run.host_bound:
        return execution
    documents = most_pairs_in_a_row(tokens, pairs_a_step, execution.token_budget) + PADDING
    graphs = CudaGraphs(policy.model, policy.backbone, documents)
    replaying = replace(execution, graphs=graphs)
    chosen = execution
    try:
        seconds = 0.0
        if run is not None:
            seconds = _record(probes, replaying, graphs, [usual])
            replay = probes[0].timing(usual, replaying).total
            lengths = worthwhile(choices, rows_to_come, run=run.total, replay=replay, recording=seconds)
        if lengths:
            seconds += _record(probes, replaying, graphs, [one for one in lengths if one not in graphs.lengths])
            logger.info("CUDA graphs of %d row lengths were recorded in %.1f s.", len(graphs.lengths), seconds)
            chosen = replaying
    except RuntimeError as error:
        logger.warning("No CUDA graph is recorded: %s.", str(error).partition("\n")[0])
    if chosen is execution:
        graphs.release()
    torch.cuda.empty_cache()
    return chosen


@dataclass(frozen=True)
class Lengths:
    """Lengths to record.

    Attributes:
        lengths: ascending; the last one holds the longest row.
        padding: tokens of rows that are padded to them over tokens of rows that are padded to the next multiple.
    """

    lengths: list[int]
    padding: float


def lengths_by_count(rows: np.ndarray[Any, Any], multiple: int) -> list[Lengths]:
    """Return the best set of one length, of two lengths and so on: those that pad rows of these tokens least.

    They are multiples of `multiple`. With u_1 < u_2 < ... the lengths that occur and n_ij the number of rows from u_i
    to u_j, the least total of m lengths with u_j as the last is T_m(j) = min_i T_{m-1}(i) + u_j n_{i+1,j}. The last
    ones returned pad by `LEAST_PADDING` at most, or are `RECORDED` in number.
    """
    lengths, counts = np.unique(-(-rows // multiple) * multiple, return_counts=True)
    before = np.concatenate([[0], counts.cumsum()])
    totals = np.where(np.tri(len(lengths), dtype=bool).T, lengths * (before[1:] - before[:-1, None]), np.inf)
    least, chosen = totals[0], [[length] for length in lengths.tolist()]
    unpadded = float(lengths @ counts)
    found = [Lengths(chosen[-1], least[-1] / unpadded)]
    while len(found) < min(RECORDED, len(lengths)) and found[-1].padding > LEAST_PADDING:
        candidates = least[:-1, None] + totals[1:]
        previous = candidates.argmin(axis=0)
        chosen = [[*chosen[i], length] for i, length in zip(previous, lengths.tolist(), strict=True)]
        least = candidates.min(axis=0)
        found.append(Lengths(chosen[-1], least[-1] / unpadded))
    return found


def worthwhile(choices: Sequence[Lengths], rows: float, *, run: float, replay: float, recording: float) -> list[int]:
    """Return the lengths that minimize the time of all coming rows, recording included; none if no graphs do.

    Args:
        choices: what to choose from.
        rows: how many are to come.
        run: seconds of a row that is run.
        replay: seconds of a row that is replayed, without padding.
        recording: seconds of one recording.
    """
    seconds = [len(choice.lengths) * recording + rows * replay * choice.padding for choice in choices]
    best = min(range(len(choices)), key=seconds.__getitem__)
    return choices[best].lengths if seconds[best] < rows * run else []


def _obstacle(policy: Policy, execution: Execution, longest: int) -> str | None:
    """Why rows of up to `longest` tokens cannot be recorded, or None."""
    if policy.device.type != "cuda":
        return "there is no CUDA GPU"
    if not all(hasattr(torch._C, name) for name in UNDO):
        return f"PyTorch {torch.__version__} cannot undo a recording that fails"
    if policy.form != "shared_prefix":
        return "the model is not run with a shared prefix"
    if positions_depend_on_length(policy.causal_lm.config.get_text_config()):
        return "its position encoding depends on the longest sequence"
    if not isinstance(policy.model, PeftModel):
        return "the model itself is trained, not an adapter"
    if policy.fused is None or not policy.fused.launches_by_shape(*text_layers(policy.model)):
        return "not all of its MLPs and experts are fused, and kernels that depend on values cannot be recorded"
    if policy.recurrence.in_steps:
        names = ", ".join(sorted(policy.recurrence.in_steps))
        return f"its recurrent layers run in as many steps as a row needs ({names} has no kernels of Wishbone's)"
    if ModelState(policy.model).hooks_of_others():
        return "its modules have hooks, which a replay would not call"
    if not all(parameter.is_cuda for parameter in policy.model.parameters()):
        return "part of the model is in host memory"
    if not keeps_all(policy, execution, longest):
        return f"the activations of a row of {longest} tokens are not all kept"
    if not keeps_all(policy, execution, HELD_ROWS * longest):
        return f"memory does not hold the activations of a second row of {longest} tokens"
    return None


def keeps_all(policy: Policy, execution: Execution, tokens: int) -> bool:
    """Return whether all activations of a row, or of rows of so many tokens together, are kept on the GPU."""
    if execution.room is None:
        return not any(layer.gradient_checkpointing for layer in policy.layers)
    return execution.offload != "always" and execution.room.keeps_all(tokens, len(policy.layers))


def passes_to_come(step: PreferenceStep, first: Sequence[TokenizedPair], *, seen_again: bool) -> list[PreferenceStep]:
    """Return the steps to record: with the reference, without it, or both where the first epoch stores its values.

    A pass of policy and reference is another one than that of the policy alone, which rows run whose reference values
    are stored.

    Args:
        step: of the run, whose reference's identity is known.
        first: pairs of its first step.
        seen_again: whether pairs will be seen more than once.
    """
    reference = step.reference
    if not isinstance(reference, CachedReference) or not isinstance(reference.inner, AdapterDisabled):
        return [step]
    if not reference.inner.in_lockstep:
        return [step]  # two passes, of which the policy's is the same
    alone = PreferenceStep(step.policy, NoReference(), step.objective)
    if reference.knows(first):
        return [alone]
    return [step, alone] if seen_again else [step]


def _record(probes: Sequence[RowProbe], replaying: Execution, graphs: CudaGraphs, lengths: Sequence[int]) -> float:
    """Record rows of these lengths and return the seconds it took."""
    start = time.perf_counter()
    with graphs.recording(), phase("recording", len(lengths), "CUDA graph") as counting:
        for length in lengths[::-1]:
            for probe in probes:
                probe.run(length, replaying)
            counting.more()
    return time.perf_counter() - start
