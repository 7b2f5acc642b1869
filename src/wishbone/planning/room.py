"""The rows that training would run, estimated before anything is loaded: token budget, layers kept, host memory.

Training and planning take the same decisions with the same code. On a GPU training measures what rows take and fits an
`Execution` to it (`engine/fitting.py`); here the planner's estimate stands in for the measurement. On a CPU both
follow one rule (`budget.py`).

Where rows of the usual length cannot be kept whole, training times shorter ones that can, and takes them if they are
faster. Nothing here can be timed, so such a run takes less time than planned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from wishbone.engine.execution import Execution
from wishbone.engine.execution import Treatment as GivenTreatment
from wishbone.engine.fitting import SPARE, fit
from wishbone.planning.budget import estimated_room, token_budget
from wishbone.planning.memory import CONTEXT, MemoryEstimate, MemoryPlan, estimate_memory
from wishbone.planning.model_shape import ModelShape

Treatment = Literal["auto"] | GivenTreatment

LONGEST = 2**24
"""Tokens of a row beyond which no longer one is looked for."""


@dataclass(frozen=True)
class Machine:
    """A device: its kind, its memory in bytes, and how much of it a run may have."""

    kind: Literal["cuda", "cpu"]
    memory: float
    free: float

    @property
    def limit(self) -> float:
        """Bytes that a run should stay below."""
        return self.free - SPARE * self.memory if self.kind == "cuda" else self.free


@dataclass(frozen=True)
class Rows:
    """How rows are run.

    Attributes:
        execution: what training would choose.
        layers: layers of the model.
        largest: tokens of the largest row that has to fit.
        memory: what it takes.
    """

    execution: Execution
    layers: int
    largest: int
    memory: MemoryEstimate

    @property
    def budget(self) -> int:
        """Most tokens of a row that holds more than one pair."""
        return self.execution.token_budget

    @property
    def kept_layers(self) -> int:
        """Layers of the largest row whose activations are kept."""
        return self.kept(self.largest)

    @property
    def offload(self) -> bool:
        """Whether inputs of recomputed layers wait in host memory."""
        return self.execution.offload == "always"

    def kept(self, tokens: float) -> int:
        """Return how many layers a row keeps the activations of."""
        assert self.execution.room is not None
        return self.execution.room.kept(tokens, self.layers)


def choose_rows(
    shape: ModelShape,
    plan: MemoryPlan,
    machine: Machine,
    asked: int | str,
    treatment: Treatment,
    longest: int,
    most: int,
    *,
    profiled: bool = True,
) -> Rows:
    """Return what training would choose.

    Args:
        shape: of the model.
        plan: what is trained and how; its rows are set here.
        machine: the device.
        asked: training.token_budget.
        treatment: training.activations.
        longest: tokens of the run's longest pair in a row.
        most: tokens of the pairs of a step; no row has more.
        profiled: whether rows are measured on a GPU before the first step; those of a sharded model are estimated.
    """
    execution = _asked(shape, plan, machine, token_budget(asked, machine.kind), treatment)

    def estimate(tokens: int, execution: Execution) -> MemoryEstimate:
        return estimate_memory(shape, planned_row(plan, execution, tokens, shape.layers))

    def peak(tokens: int, execution: Execution) -> float | None:
        memory = estimate(tokens, execution)
        return memory.allocated if memory.total <= machine.limit else None

    if machine.kind == "cpu" or not profiled:
        row = max(longest, min(execution.token_budget, most))
        assert execution.room is not None
        if machine.kind == "cuda" and execution.offload == "as needed" and not execution.room.holds(row):
            execution = replace(execution, offload="always")
    else:
        found = fit(
            execution,
            peak,
            lambda: machine.limit - CONTEXT,
            layers=shape.layers,
            longest=longest,
            most=most,
            budget_fixed=asked != "auto",
        )
        execution, row = found.execution, found.row
    return Rows(execution, shape.layers, row, estimate(row, execution))


def longest_pair(
    shape: ModelShape, plan: MemoryPlan, machine: Machine, treatment: Treatment, scored_share: float
) -> int:
    """Return the tokens of the longest pair that fits alone in a row, with everything given up that may be."""
    execution = Execution.treating(1, _given(machine, "offload" if treatment == "auto" else treatment))
    if execution.offload == "always":
        execution = execution.in_host_memory()

    def fits(tokens: int) -> bool:
        row = replace(planned_row(plan, execution, tokens, shape.layers), scored_tokens=tokens * scored_share)
        return estimate_memory(shape, row).total <= machine.limit

    low, high = 0, LONGEST
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def planned_row(plan: MemoryPlan, execution: Execution, tokens: int, layers: int) -> MemoryPlan:
    """Return the plan of a run for a row of so many tokens, computed as `execution` says."""
    assert execution.room is not None
    kept = execution.room.kept(tokens, layers)
    return replace(
        plan,
        row_tokens=tokens,
        kept_layers=kept,
        offload=execution.offload == "always",
        pieces=execution.in_pieces,
        head_chunk=execution.head_chunk,
    )


def _asked(shape: ModelShape, plan: MemoryPlan, machine: Machine, budget: int, treatment: Treatment) -> Execution:
    """What training begins with, before anything is measured."""
    if treatment != "auto":
        return Execution.treating(budget, _given(machine, treatment))
    at_rest = estimate_memory(shape, replace(plan, row_tokens=0, kept_layers=0)).total
    room = estimated_room(
        int(machine.free - at_rest),
        machine.kind,
        layers=shape.layers,
        hidden=shape.hidden,
        inner=shape.inner or None,
        element_bytes=plan.element_bytes,
    )
    return Execution(budget, room, offload="as needed")


def _given(machine: Machine, treatment: GivenTreatment) -> GivenTreatment:
    """A given treatment on this machine: a CPU has nowhere to offload to."""
    return "recompute" if machine.kind == "cpu" and treatment == "offload" else treatment
