"""The plan of a whole run: whether it fits, in which rows, and how long it takes.

Memory is that of the largest row that the run can have. The rows of steps are packed as training packs them, from pairs
in a random order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from statistics import fmean

import numpy as np

from wishbone.config.schema import SORTED_LOSSES, RunConfig
from wishbone.errors import RequestError
from wishbone.planning.gpus import BF16_FROM, FP8_FROM, INT8_FROM, Gpu
from wishbone.planning.host_time import host_seconds
from wishbone.planning.lengths import PairLengths
from wishbone.planning.memory import GIB, MemoryEstimate, MemoryPlan, Weights, frozen_bytes, trained_parameters
from wishbone.planning.model_shape import ModelShape
from wishbone.planning.room import Machine, Rows, choose_rows, longest_pair
from wishbone.planning.schedule import Schedule, schedule
from wishbone.planning.sharded import gathering_seconds, machine_of_shards, sharded_memory, uncopied
from wishbone.planning.simulated_rows import Packing, simulated_rows
from wishbone.planning.step_time import FULL_ROW, step_seconds
from wishbone.planning.vision_tower import Tower
from wishbone.planning.work import Work

REFERENCE_FREE = frozenset({"simpo", "cpo", "orpo"})
GRADIENT_BYTES = 4
"""Of one trained parameter, as gradients are added up."""
DTYPES: Mapping[str, Weights] = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
QUANTIZED: Mapping[str, Weights] = {"nf4": "nf4", "fp8": "fp8", "int8": "int8"}


@dataclass(frozen=True)
class RunPlan:
    """What a run will be.

    Attributes:
        weights: form of the weights.
        machine: the device.
        rows: how rows are run, and the memory of the largest.
        fits: whether it stays below the machine's limit.
        pairs: pairs to learn from.
        schedule: steps of the run.
        rows_a_step: mean number of rows of a step.
        row_tokens: mean tokens of a row.
        step_tokens: mean tokens of a step.
        longest: tokens of the longest pair in a row.
        longest_sequence: tokens of the longest sequence (prompt and a completion) that fits, in the data's proportion.
        seconds: of a step, or None where nothing was measured to derive it from.
        seconds_at_least: whether rows are so short that this is only a lower bound.
        exchanged: bytes of gradients that each of several devices sends and receives in a step.
        sharded: whether FSDP2 divides the model over the devices.
        gathered: bytes of weights that each device receives for a row then, forward and backward.

    Devices share the pairs of a step; its rows and time are those of the device with the most tokens.
    """

    weights: Weights
    machine: Machine
    rows: Rows
    fits: bool
    pairs: int
    schedule: Schedule
    rows_a_step: float
    row_tokens: float
    step_tokens: float
    longest: int
    longest_sequence: int
    seconds: float | None
    seconds_at_least: bool
    exchanged: float = 0.0
    sharded: bool = False
    gathered: float = 0.0


@dataclass(frozen=True)
class Target:
    """What a run is planned for: the model's shape, that of a separate reference, the pairs, and the device.

    Attributes:
        tower: for images; counted where pairs have some.
    """

    shape: ModelShape
    lengths: PairLengths
    machine: Machine
    gpu: Gpu | None
    reference: ModelShape | None = None
    tower: Tower | None = None

    @property
    def sees_images(self) -> bool:
        """Whether pairs have images that a tower runs over."""
        return self.tower is not None and self.lengths.image_tokens > 0


def gpu_machine(gpu: Gpu) -> Machine:
    """Return the machine of a GPU that nothing else uses."""
    return Machine("cuda", gpu.memory_gib * GIB, gpu.memory_gib * GIB)


def plan_run(config: RunConfig, target: Target, *, processes: int = 1) -> RunPlan:
    """Return the plan of a run, whether or not it fits.

    Raises:
        RequestError: the device cannot compute what is asked for.
    """
    shape, lengths = target.shape, target.lengths
    training, limit = config.training, config.data.max_length
    plan = memory_plan(config, target)
    tokens = lengths.rows(limit)
    pairs, steps, _ = _run_length(config, len(tokens), processes)
    sharded = is_sharded(config, target, processes)
    rows = chosen_rows(config, target, processes=processes)
    machine = machine_of_shards(shape, plan, target.machine, processes) if sharded else target.machine
    machine = _beside_tower(machine, config, target, plan, rows.largest)
    packing = Packing(min(steps.pairs_a_step, pairs), processes, rows.budget, together=sharded)
    packed = list(simulated_rows(tokens, packing, training.seed))
    row_tokens = fmean(sum(step) / len(step) for step in packed)
    scored_share = float(lengths.scored(limit).sum() / tokens.sum())
    fitting = longest_pair(shape, plan, machine, training.activations, scored_share)
    sequence = int(fitting / (1 + scored_share / (2 - scored_share)))
    step_tokens = fmean(map(sum, packed))
    gathered = 2 * (processes - 1) / processes * frozen_bytes(shape, plan) if sharded else 0.0
    seconds, a_step = None, fmean(map(len, packed))
    if target.gpu is not None:
        work = Work(
            tokens=step_tokens,
            scored=step_tokens * scored_share,
            contexts=step_tokens * float(lengths.contexts(limit).sum() / tokens.sum()),
            passes=_passes(config, steps.epochs),
            recomputed=1 - rows.kept(row_tokens) / shape.layers,
            tower=_tower_flop(config, target, step_tokens, steps.epochs) if target.sees_images else 0.0,
            rows=a_step,
        )
        seconds = step_seconds(shape, replace(plan, offload=rows.offload), work, target.gpu)
        if seconds is not None:
            seconds += gathering_seconds(a_step, gathered)
            host = host_seconds(shape, plan, a_step, work.recomputed, offload=rows.offload, divided=sharded)
            seconds = max(seconds, host)
    return RunPlan(
        weights=plan.weights,
        machine=target.machine,
        rows=rows,
        fits=rows.memory.total <= target.machine.limit,
        pairs=pairs,
        schedule=steps,
        rows_a_step=a_step,
        row_tokens=row_tokens,
        step_tokens=step_tokens,
        longest=int(tokens.max()),
        longest_sequence=min(sequence, shape.positions) if shape.positions else sequence,
        seconds=seconds,
        seconds_at_least=row_tokens < FULL_ROW,
        exchanged=2 * (processes - 1) / processes * GRADIENT_BYTES * trained_parameters(shape, plan),
        sharded=sharded,
        gathered=gathered,
    )


def is_sharded(config: RunConfig, target: Target, processes: int) -> bool:
    """Return whether FSDP2 divides the model: where the run asks for it, or where a GPU does not hold all of it.

    Raises:
        RequestError: the device cannot compute what is asked for.
    """
    asked = config.model.sharding
    if processes == 1 or asked == "none":
        return False
    if asked == "fsdp":
        return True
    in_codes = target.shape.experts and config.model.quantization != "none"
    if target.machine.kind == "cpu" or in_codes:
        return False
    return _chosen_rows(config, target, processes, sharded=False).memory.total > target.machine.limit


def chosen_rows(config: RunConfig, target: Target, *, processes: int = 1) -> Rows:
    """Return the rows that training would choose and the memory that they take, whether or not it is there.

    Raises:
        RequestError: the device cannot compute what is asked for.
    """
    return _chosen_rows(config, target, processes, sharded=is_sharded(config, target, processes))


def _chosen_rows(config: RunConfig, target: Target, processes: int, *, sharded: bool) -> Rows:
    training, plan, shape = config.training, memory_plan(config, target), target.shape
    tokens = np.sort(target.lengths.rows(config.data.max_length))
    _, _, on_device = _run_length(config, len(tokens), processes)
    longest, most = int(tokens[-1]), int(tokens[-on_device:].sum())
    machine = machine_of_shards(shape, plan, target.machine, processes) if sharded else target.machine
    run = uncopied(plan) if sharded else plan
    budget = training.token_budget
    rows = choose_rows(shape, run, machine, budget, training.activations, longest, most, profiled=not sharded)
    if target.sees_images:
        smaller = _beside_tower(machine, config, target, plan, rows.largest)
        rows = choose_rows(shape, run, smaller, budget, training.activations, longest, most, profiled=not sharded)
        tower = _tower_bytes(config, target, plan, rows.largest)
        rows = replace(rows, memory=MemoryEstimate({**rows.memory.items, "vision tower": tower}))
    if target.reference is not None:
        rows = replace(rows, memory=_with_reference(rows.memory, target.reference, plan))
    if sharded:
        rows = replace(rows, memory=sharded_memory(shape, plan, rows.memory, processes))
    return rows


def _run_length(config: RunConfig, pairs: int, processes: int) -> tuple[int, Schedule, int]:
    """Pairs to learn from, the steps over them, and the pairs of a step on one device."""
    learned = max(1, pairs - round(pairs * config.data.eval_fraction))
    steps = schedule(learned, config.training)
    return learned, steps, min(ceil(steps.pairs_a_step / processes), learned)


def memory_plan(config: RunConfig, target: Target) -> MemoryPlan:
    """Return what memory depends on in a run, except its rows.

    Raises:
        RequestError: the device cannot compute what is asked for.
    """
    names = config.adapter.target_modules
    full = config.adapter.method == "full"
    copied = full and target.sees_images and _reads_reference(config)
    separate = config.model.reference is not None or copied
    return MemoryPlan(
        weights=_weights(config, target.gpu),
        row_tokens=0,
        method=config.adapter.method,
        rank=config.adapter.rank,
        targets="all-linear" if isinstance(names, str) else tuple(name.rpartition(".")[2] for name in names),
        optimizer=config.training.optimizer,
        device=target.machine.kind,
        reference="separate" if separate else "stored" if full and _reads_reference(config) else "none",
        device_memory=target.machine.memory,
    )


def _weights(config: RunConfig, gpu: Gpu | None) -> Weights:
    """The form of the weights; raises RequestError for one that the device has no arithmetic for."""
    form = QUANTIZED.get(config.model.quantization)
    if form == "fp8" and (gpu is None or gpu.capability < FP8_FROM):
        where = f"{gpu.name} has compute capability {gpu.capability:g}" if gpu else "a processor has no FP8 arithmetic"
        raise RequestError(
            f"model.quantization fp8 needs a GPU of compute capability {FP8_FROM} or higher (RTX 40, L4, H100 and "
            f"newer), and {where}; set model.quantization to int8, nf4 or none"
        )
    if form == "int8" and gpu is not None and gpu.capability < INT8_FROM:
        raise RequestError(
            f"model.quantization int8 needs a GPU of compute capability {INT8_FROM} or higher (RTX 20, T4 and newer), "
            f"and {gpu.name} has {gpu.capability:g}; set model.quantization to nf4 or none"
        )
    if form is not None:
        return form
    if config.model.dtype != "auto":
        return DTYPES[config.model.dtype]
    if gpu is None:
        return "f32"
    return "bf16" if gpu.capability >= BF16_FROM else "f16"


def _tower_bytes(config: RunConfig, target: Target, plan: MemoryPlan, row_tokens: float) -> float:
    """What the tower takes beside a row, with the share of tokens of images that all pairs have together."""
    assert target.tower is not None
    return target.tower.bytes(plan, row_tokens * _share_of_images(target), learns=_trains_tower(config))


def _tower_flop(config: RunConfig, target: Target, step_tokens: float, epochs: float) -> float:
    """Operations of the tower in a step: one pass of a frozen one, for policy and reference; those of a trained one."""
    assert target.tower is not None
    recomputed = 0 if config.training.activations == "keep" else 1
    passes = _passes(config, epochs) + recomputed if _trains_tower(config) else 1
    return passes * target.tower.forward_flop(step_tokens * _share_of_images(target))


def _share_of_images(target: Target) -> float:
    """Share of the tokens of rows that stand for images."""
    return min(1.0, target.lengths.image_tokens / float(target.lengths.rows(None).sum()))


def _trains_tower(config: RunConfig) -> bool:
    """Whether the tower is trained, or has adapters."""
    return config.adapter.method == "full" or config.adapter.target_modules == "all-linear"


def _beside_tower(machine: Machine, config: RunConfig, target: Target, plan: MemoryPlan, row_tokens: float) -> Machine:
    """The machine with the room that the tower leaves."""
    if not target.sees_images:
        return machine
    return replace(machine, free=max(0.0, machine.free - _tower_bytes(config, target, plan, row_tokens)))


def _with_reference(memory: MemoryEstimate, reference: ModelShape, plan: MemoryPlan) -> MemoryEstimate:
    return MemoryEstimate({**memory.items, "reference": frozen_bytes(reference, plan)})


def _reads_reference(config: RunConfig) -> bool:
    """Whether any of the losses reads the reference policy; `sft` alone has one for its metrics."""
    losses = set(config.preference.loss)
    return losses <= {"sft"} or not losses <= REFERENCE_FREE | {"sft"}


def _passes(config: RunConfig, epochs: float) -> float:
    """Passes over the tokens of a step; the reference's is spread over the epochs that reuse its values."""
    reference = 1.0 if _reads_reference(config) else 0.0
    if config.training.reference_store != "off" or config.adapter.method == "full":
        reference /= max(ceil(epochs), 1)
    policy = 3 if config.adapter.method == "full" else 2
    return policy + reference + (0 if SORTED_LOSSES.isdisjoint(config.preference.loss) else 1)
