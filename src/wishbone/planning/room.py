"""What training would decide about rows, reckoned instead of rehearsed: token budget, layers kept, host memory.

On a GPU the trainer measures two short rows with no layer kept and one with every layer, takes what they say about a
token for all rows, and rehearses the largest row that the run can have, whose every token may be scored:

    room = memory - context - spare - fixed,    kept layers of T tokens = floor((room - T base) / (T layer))

Where such rows cannot be kept whole it may find shorter ones, which can, to be faster. That is measured and not
reckoned: the run then takes less time than was planned.

On a processor the budget is a constant and the room a share of what is free. Here the same choices are made with the
planner's estimate in place of the measurement.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Literal

from wishbone.planning.budget import MOST_ROW_TOKENS, activation_bytes, activation_room, token_budget
from wishbone.planning.memory import CONTEXT, MemoryEstimate, MemoryPlan, estimate_memory
from wishbone.planning.model_shape import ModelShape

Treatment = Literal["auto", "keep", "recompute", "offload"]

SPARE = 0.04
"""Share of the device's memory that training leaves alone."""
PROBE_TOKENS = 4096
"""Tokens of the longer of the two rows that training measures."""
LEAST_PROBE = 128
"""Tokens of a row below which it is not tried whether all layers can be kept."""
LARGEST = 2**24


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
        budget: most tokens of a row that holds more than one pair.
        largest: tokens of the largest row that has to fit.
        kept_layers: layers of it whose activations are kept.
        offload: whether inputs of its layers wait in host memory.
        memory: what it takes.
    """

    budget: int
    largest: int
    kept_layers: int
    offload: bool
    memory: MemoryEstimate


def choose_rows(
    shape: ModelShape,
    plan: MemoryPlan,
    machine: Machine,
    asked: int | str,
    treatment: Treatment,
    longest: int,
    most: int,
) -> Rows:
    """Return what training would choose.

    Args:
        shape: of the model.
        plan: what is trained and how; its rows are set here.
        machine: the device.
        asked: training.token_budget.
        treatment: training.activations.
        longest: tokens of the run's longest pair in a row.
        most: tokens of the pairs of a step, more than which no row has.
    """
    budget = usual = token_budget(asked, machine.kind)
    row = max(longest, min(usual, most))
    if machine.kind == "cpu":
        return _on_cpu(shape, plan, machine, usual, treatment, row)
    room = _Room(shape, plan, machine, treatment, row)
    if asked == "auto":
        ceiling = min(MOST_ROW_TOKENS if treatment in ("auto", "keep") else usual, most)
        row = budget = max(longest, room.best_budget(usual, ceiling))
    while True:
        found = _settled(shape, plan, machine, treatment, row, room.kept(row))
        if found.memory.total <= machine.limit or row <= longest or asked != "auto":
            return replace(found, budget=min(budget, row) if asked == "auto" else budget)
        row = budget = max(longest, row // 2)


def longest_pair(
    shape: ModelShape, plan: MemoryPlan, machine: Machine, treatment: Treatment, scored_share: float
) -> int:
    """Return the tokens of the longest pair that fits alone in a row, with all that may be done to save memory done."""
    kept = None if treatment == "keep" else 0
    offload = treatment in ("auto", "offload") and machine.kind == "cuda"

    def fits(tokens: int) -> bool:
        row = replace(plan, row_tokens=tokens, scored_tokens=tokens * scored_share, kept_layers=kept, offload=offload)
        return estimate_memory(shape, row).total <= machine.limit

    low, high = 0, LARGEST
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _on_cpu(shape: ModelShape, plan: MemoryPlan, machine: Machine, budget: int, treatment: Treatment, row: int) -> Rows:
    kept = shape.layers if treatment == "keep" else 0
    if treatment == "auto":
        sizes = SimpleNamespace(
            hidden_size=shape.hidden, intermediate_size=shape.inner or None, num_hidden_layers=shape.layers
        )
        base, layer = activation_bytes(sizes, plan.number)
        at_rest = estimate_memory(shape, replace(plan, row_tokens=0, kept_layers=0)).total
        room = activation_room(int(machine.free - at_rest), machine.kind)
        kept = max(0, min(shape.layers, int((room - row * base) // (row * layer))))
    memory = estimate_memory(shape, replace(plan, row_tokens=row, kept_layers=kept))
    return Rows(budget, row, kept, False, memory)


def _settled(shape: ModelShape, plan: MemoryPlan, machine: Machine, treatment: Treatment, row: int, kept: int) -> Rows:
    """Take less until the row fits or nothing is left to take: fewer layers kept, then inputs in host memory."""
    offload = treatment == "offload"
    while True:
        memory = estimate_memory(shape, replace(plan, row_tokens=row, kept_layers=kept, offload=offload))
        if memory.total <= machine.limit or treatment != "auto" or offload:
            return Rows(row, row, kept, offload, memory)
        kept, offload = max(kept - 1, 0), kept == 0


class _Room:
    """What training's measurements would say."""

    def __init__(self, shape: ModelShape, plan: MemoryPlan, machine: Machine, treatment: Treatment, row: int) -> None:
        self._layers = shape.layers
        self._treatment = treatment
        longer = min(PROBE_TOKENS, row)
        shorter = max(longer // 2, 1)

        def peak(tokens: int, kept: int) -> float:
            probe = replace(plan, row_tokens=tokens, kept_layers=kept, offload=treatment == "offload")
            return estimate_memory(shape, probe).allocated

        given = shape.layers if treatment == "keep" else 0
        short, long = peak(shorter, given), peak(longer, given)
        base = (long - short) / max(longer - shorter, 1)
        self._total = machine.limit - CONTEXT - (long - base * longer)
        self._base = max(base, 1e-9)
        self._layer = 0.0
        if treatment == "auto":
            while peak(longer, shape.layers) > machine.limit - CONTEXT and longer // 2 >= LEAST_PROBE:
                longer //= 2
            kept = peak(longer, shape.layers) - peak(longer, 0)
            self._layer = max(kept, 0.0) / (longer * max(shape.layers, 1))

    def kept(self, tokens: int) -> int:
        """Layers of a row whose activations are kept."""
        if self._treatment != "auto":
            return self._layers if self._treatment == "keep" else 0
        return max(0, min(self._layers, self._kept(tokens)))

    def best_budget(self, usual: int, most: int) -> int:
        """Tokens of a row: as many as can be kept, down to the usual number, which may have to be recomputed."""
        budget = most
        while budget > usual and self._kept(budget) < self._layers:
            budget = max(budget // 2, usual)
        return max(min(budget, int(self._total // self._base) // 128 * 128), 128)

    def _kept(self, tokens: int) -> int:
        return int((self._total - tokens * self._base) // max(tokens * self._layer, 1e-9))
