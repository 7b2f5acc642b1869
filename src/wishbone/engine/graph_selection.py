"""Which row lengths are recorded as CUDA graphs (`policy/cuda_graphs.py`), and whether that pays.

A row is padded to the next length that has a graph. Recording takes time and memory. So it is done only where the GPU
waits for the host, which the timing of one row shows, and where the rows to come gain more time than recording takes.
The longest row is recorded and replayed to see that; the others are when the first of their length comes. Rows of
steps to come are drawn from the data set. Running one takes as long as its launches, whatever its length, or as its
kernels; a replay takes as long as its kernels. With R rows to come, t seconds of launches, g of a replayed token, s of
a recording, and u(r) the length in the set U that a row of r tokens is padded to,

    U = argmin ( (|U| - 1) s + R mean_r min ( max(t, g r), g u(r) ) ),

and it is recorded where that is below R mean_r max(t, g r), with a margin for what measuring leaves uncertain.
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
from wishbone.engine.execution import NOTHING, SMALL_HEAD_CHUNK, Execution, PaddedTo
from wishbone.engine.probe import RowProbe
from wishbone.engine.profiling import ADAM_BYTES, usable_bytes
from wishbone.engine.row_lengths import likely_rows, most_pairs_in_a_row
from wishbone.engine.step import PreferenceStep
from wishbone.fused.parts import text_layers
from wishbone.model.host_embedding import HostEmbedding
from wishbone.phases import phase
from wishbone.policy.capture import UNDO
from wishbone.policy.cuda_graphs import CudaGraphs
from wishbone.policy.long_sequences import positions_depend_on_length
from wishbone.policy.model_state import ModelState
from wishbone.policy.policy import Policy
from wishbone.reference.cache import CachedReference
from wishbone.reference.reference import AdapterDisabled, NoReference

RECORDED = 24
"""Most lengths that are recorded."""

LEAST_PADDING = 1.01
"""Tokens with padding over tokens without, at or below which no further length is recorded."""

LEAST_ROWS = 16
"""Rows to come below which finding out whether recording pays takes longer than it could save."""

LEAST_GAIN = 0.05
"""Share of the time of all rows to come that recording must save, because times of single rows vary."""

PADDING = 1
"""Documents of a row that are its padding."""

HELD_ROWS = 2
"""Rows that take memory at a time: those of the recordings, and a row that is run."""

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
    before: PaddedTo | None = None,
) -> Execution:
    """Return `execution` with CUDA graphs of the lengths that rows of the run will have, or as it is.

    Args:
        step: its model has no gradients yet.
        execution: what profiling found.
        tokens: of each pair of the run in a row.
        pairs_a_step: pairs of one optimizer step on this process.
        wanted: "auto", or "on" to record all lengths before the first step and to say where that is not possible.
        steps: optimizer steps that the run still has.
        passes: what `passes_to_come` says; empty for the step alone.
        before: what rows of this run were padded to before it was interrupted. Nothing is tried out then.
    """
    policy = step.policy
    rows = likely_rows(tokens, pairs_a_step, execution.token_budget)
    lengths = list(before.lengths) if before else lengths_by_count(rows, policy.row_multiple)[-1].lengths
    longest, rows_to_come = lengths[-1], steps * pairs_a_step * tokens.mean() / rows.mean()
    probes = [RowProbe(one, int(tokens.max())) for one in passes or [step]]
    tried = wanted == "auto" and before is None

    def not_recorded(why: str) -> Execution:
        logger.log(logging.WARNING if wanted == "on" else logging.INFO, "No CUDA graph is recorded, because %s.", why)
        return execution

    obstacle = _obstacle(policy)
    if obstacle is not None:
        return not_recorded(obstacle)
    if tried and rows_to_come < LEAST_ROWS:
        return not_recorded(f"only {rows_to_come:.0f} rows are to come")
    run = probes[0].timing(round(float(np.median(rows))), execution) if tried else None
    if run is not None and not run.host_bound:
        return not_recorded(f"the host launches a row in {run.launched:.2f} s of the {run.total:.2f} s that it takes")
    shared = execution if before else beside_another(execution, longest, len(policy.layers))
    if before is None and not _two_fit(probes[0], shared, longest):
        return not_recorded(f"memory does not hold a second row of {longest} tokens")
    documents = most_pairs_in_a_row(tokens, pairs_a_step, execution.token_budget) + PADDING
    graphs = CudaGraphs(policy.model, policy.backbone, documents)
    replaying, free = replace(shared, graphs=graphs), _free_bytes()
    try:
        seconds = _record(probes, replaying, graphs, lengths[-1:] if tried or before else lengths)
        if before is not None:
            graphs.plan(lengths, before.worth)
        elif run is not None:
            times = RowTimes(run.total, probes[0].timing(longest, replaying).total / longest, seconds)
            lengths = worthwhile(rows, policy.row_multiple, rows_to_come, times)
            if not lengths:
                graphs.release()
                torch.cuda.empty_cache()
                return not_recorded(f"{rows_to_come:.0f} rows are to come, and {times}")
            graphs.plan(lengths, times.worth)
            logger.info("Rows are padded to %s tokens and replayed from CUDA graphs: %s.", lengths, times)
    except RuntimeError as error:
        graphs.release()
        torch.cuda.empty_cache()
        logger.warning("No CUDA graph is recorded: %s.", str(error).partition("\n")[0])
        return execution
    taken = (free - _free_bytes()) / 2**30
    logger.info("CUDA graphs of %d rows were recorded in %.1f s and take %.2f GiB.", graphs.recorded, seconds, taken)
    return replaying


@dataclass(frozen=True)
class RowTimes:
    """Seconds of rows, from two that were tried.

    Attributes:
        run: of a row that is run while the GPU waits for the host.
        token: of each token of a row that is replayed.
        recording: of recording one length.
    """

    run: float
    token: float
    recording: float

    def __str__(self) -> str:
        run, recording = f"running a row takes {self.run:.2f} s", f"recording a length {self.recording:.1f} s"
        return f"{run}, replaying it {1000 * self.token:.3f} s for 1,000 tokens, {recording}"

    @property
    def worth(self) -> int:
        """Tokens up to which a replay takes no longer than running any row."""
        return int(self.run / self.token)

    def of_runs(self, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the seconds of rows that are run."""
        return np.maximum(self.run, self.token * tokens)


@dataclass(frozen=True)
class Lengths:
    """Lengths to record.

    Attributes:
        lengths: ascending; the last one holds the longest row.
        row: what a row costs on average: tokens, or seconds.
    """

    lengths: list[int]
    row: float


def lengths_by_count(rows: np.ndarray[Any, Any], multiple: int, times: RowTimes | None = None) -> list[Lengths]:
    """Return the best set of one length, of two lengths and so on: those with which rows of these tokens cost least.

    They are multiples of `multiple`. A row costs its tokens with padding or, with `times`, its seconds, run or padded
    and replayed. With u_1 < u_2 < ... the lengths that occur and c_ij the cost of the rows from u_i to u_j padded to
    u_j, the least total of m lengths with u_j as the last is T_m(j) = min_i T_{m-1}(i) + c_{i+1,j}. The last ones
    returned are `RECORDED` in number, or pad by `LEAST_PADDING` at most where nothing was timed.
    """
    lengths, counts = np.unique(-(-rows // multiple) * multiple, return_counts=True)
    enough = LEAST_PADDING * float(lengths @ counts) if times is None else 0.0
    cost = np.broadcast_to(lengths, (len(lengths), len(lengths)))
    if times is not None:
        cost = np.minimum(times.of_runs(lengths)[:, None], times.token * lengths)
    summed = np.concatenate([np.zeros((1, len(lengths))), (counts[:, None] * cost).cumsum(0)])
    totals = np.where(np.tri(len(lengths), dtype=bool).T, summed[1:].diagonal() - summed[:-1], np.inf)
    least, chosen = totals[0], [[length] for length in lengths.tolist()]
    found = [Lengths(chosen[-1], least[-1] / len(rows))]
    while len(found) < min(RECORDED, len(lengths)) and found[-1].row * len(rows) > enough:
        candidates = least[:-1, None] + totals[1:]
        previous = candidates.argmin(axis=0)
        chosen = [[*chosen[i], length] for i, length in zip(previous, lengths.tolist(), strict=True)]
        least = candidates.min(axis=0)
        found.append(Lengths(chosen[-1], least[-1] / len(rows)))
    return found


def worthwhile(rows: np.ndarray[Any, Any], multiple: int, to_come: float, times: RowTimes) -> list[int]:
    """Return the lengths that minimize the time of all coming rows, recording included; none if no graphs do.

    Args:
        rows: tokens of rows as they will come.
        multiple: of which lengths are.
        to_come: how many rows.
        times: what was measured. The longest row has been recorded.
    """
    choices = lengths_by_count(rows, multiple, times)
    seconds = [(len(choice.lengths) - 1) * times.recording + to_come * choice.row for choice in choices]
    best = min(range(len(choices)), key=seconds.__getitem__)
    run = to_come * float(times.of_runs(rows).mean())
    return choices[best].lengths if seconds[best] < (1 - LEAST_GAIN) * run else []


def _obstacle(policy: Policy) -> str | None:
    """Why rows of a policy cannot be recorded, or None."""
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
    modules = (module for module in policy.model.modules() if not isinstance(module, HostEmbedding))
    if not all(parameter.is_cuda for module in modules for parameter in module.parameters(recurse=False)):
        return "part of the model is in host memory"
    return None


def beside_another(execution: Execution, longest: int, layers: int) -> Execution:
    """Return the execution of a row that has memory for another one beside it.

    Where the room was measured and does not keep `HELD_ROWS` rows whole, each has its share, and recomputes more. Where
    the user asks for less memory, logits are computed in smaller pieces: a row that is run frees the memory of its
    layers for them, and a recording does not.

    Args:
        execution: of a row that has the memory for itself.
        longest: tokens of the longest row.
        layers: of the model.
    """
    room = execution.room
    if room == NOTHING and execution.head_chunk is not None:
        return replace(execution, head_chunk=min(execution.head_chunk, SMALL_HEAD_CHUNK))
    if room is None or not execution.measures_room or room.keeps_all(HELD_ROWS * longest, layers):
        return execution
    return replace(execution, room=replace(room, total=room.total / HELD_ROWS))


def _two_fit(probe: RowProbe, execution: Execution, longest: int) -> bool:
    """Whether memory holds `HELD_ROWS` rows: known where a measured room keeps them, else seen by running one."""
    room, policy = execution.room, probe.policy
    if room is not None and room.keeps_all(HELD_ROWS * longest, len(policy.layers)):
        return True
    at_rest, peak = probe.at_rest(), probe.peak(longest, execution)
    trained = sum(parameter.numel() for parameter in policy.model.parameters() if parameter.requires_grad)
    needed = None if peak is None else at_rest + HELD_ROWS * (peak - at_rest) + ADAM_BYTES * trained
    return needed is not None and needed <= usable_bytes(policy.device)


def _free_bytes() -> int:
    """Bytes of the GPU that nobody has."""
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


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
