"""The plan of a whole run: whether it fits, in which rows, how long it takes, and what fits if it does not.

Memory is that of the largest row that the run can have. The rows of steps are packed as training packs them, from pairs
in a random order. What is offered instead of a run that does not fit has been planned itself, and fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil
from statistics import fmean
from typing import Any

import numpy as np

from wishbone.config.schema import SORTED_LOSSES, RunConfig
from wishbone.data.packing import pack_rows
from wishbone.errors import RequestError
from wishbone.planning.gpus import BF16_FROM, FP8_FROM, Gpu, known_gpus
from wishbone.planning.lengths import PairLengths
from wishbone.planning.memory import GIB, MemoryEstimate, MemoryPlan, Weights, estimate_memory, frozen_bytes
from wishbone.planning.model_shape import ModelShape
from wishbone.planning.room import Machine, Rows, choose_rows, longest_pair
from wishbone.planning.schedule import Schedule, schedule
from wishbone.planning.step_time import FULL_ROW, Work, step_seconds

REFERENCE_FREE = frozenset({"simpo", "cpo", "orpo"})
SIMULATED_STEPS = 100
SHORTEST = 64
"""Tokens of a sequence below which a shorter data.max_length is no help."""
DTYPES: Mapping[str, Weights] = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
QUANTIZED: Mapping[str, Weights] = {"nf4": "nf4", "fp8": "fp8"}


@dataclass(frozen=True)
class Alternative:
    """Another way that fits: settings to give instead, or a GPU to run on, and the bytes that it takes."""

    settings: tuple[str, ...]
    gpu: str | None
    memory: float


@dataclass(frozen=True)
class RunPlan:
    """What a run will be.

    Attributes:
        weights: form of the weights.
        machine: the device.
        rows: how rows are run, and the memory of the largest.
        fits: whether that is below the machine's limit.
        pairs: pairs to learn from.
        schedule: steps of the run.
        rows_a_step: mean number of rows of a step.
        row_tokens: mean tokens of a row.
        step_tokens: mean tokens of a step.
        longest: tokens of the longest pair in a row.
        longest_sequence: tokens of the longest sequence (prompt and a completion) that fits, divided as the data's are.
        seconds: of a step, or None where nothing is known.
        seconds_at_least: whether rows are too small for that to be more than a lower bound.
        alternatives: what fits, where this does not.
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
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True)
class Target:
    """What a run is planned for: the model's shape, that of a separate reference, the pairs, and the device."""

    shape: ModelShape
    lengths: PairLengths
    machine: Machine
    gpu: Gpu | None
    reference: ModelShape | None = None


def gpu_machine(gpu: Gpu) -> Machine:
    """Return a GPU that nothing else uses."""
    return Machine("cuda", gpu.memory_gib * GIB, gpu.memory_gib * GIB)


def plan_run(config: RunConfig, target: Target, *, processes: int = 1) -> RunPlan:
    """Return the plan of a run, with alternatives where it does not fit.

    Raises:
        RequestError: the device cannot compute what is asked for.
    """
    plan = _planned(config, target, processes)
    return plan if plan.fits else replace(plan, alternatives=tuple(_alternatives(config, target, processes)))


def _planned(config: RunConfig, target: Target, processes: int) -> RunPlan:
    shape, lengths, machine = target.shape, target.lengths, target.machine
    training, limit = config.training, config.data.max_length
    plan = memory_plan(config, target)
    tokens = lengths.rows(limit)
    pairs = max(1, len(tokens) - round(len(tokens) * config.data.eval_fraction))
    steps = schedule(pairs, training, processes=processes)
    on_device = min(max(1, steps.pairs_a_step // processes), pairs)
    longest = int(tokens.max())
    most = int(np.sort(tokens)[-on_device:].sum())
    rows = choose_rows(shape, plan, machine, training.token_budget, training.activations, longest, most)
    if target.reference is not None:
        rows = replace(rows, memory=_with_reference(rows.memory, target.reference, plan))
    packed = list(_simulated_rows(tokens, on_device, rows.budget, training.seed))
    row_tokens = fmean(sum(step) / len(step) for step in packed)
    scored_share = float(lengths.scored(limit).sum() / tokens.sum())
    fitting = longest_pair(shape, plan, machine, training.activations, scored_share)
    sequence = int(fitting / (1 + scored_share / (2 - scored_share)))
    step_tokens = fmean(map(sum, packed))
    seconds = None
    if target.gpu is not None:
        kept = _kept_of(shape, plan, rows, machine, row_tokens) if training.activations == "auto" else rows.kept_layers
        work = Work(
            tokens=step_tokens,
            scored=step_tokens * scored_share,
            contexts=step_tokens * float(lengths.contexts(limit).sum() / tokens.sum()),
            passes=_passes(config, steps.epochs),
            recomputed=1 - kept / shape.layers,
        )
        seconds = step_seconds(shape, replace(plan, offload=rows.offload), work, target.gpu)
    return RunPlan(
        weights=plan.weights,
        machine=machine,
        rows=rows,
        fits=rows.memory.total <= machine.limit,
        pairs=pairs,
        schedule=steps,
        rows_a_step=fmean(map(len, packed)),
        row_tokens=row_tokens,
        step_tokens=step_tokens,
        longest=longest,
        longest_sequence=min(sequence, shape.positions) if shape.positions else sequence,
        seconds=seconds,
        seconds_at_least=row_tokens < FULL_ROW,
    )


def memory_plan(config: RunConfig, target: Target) -> MemoryPlan:
    """Return what memory depends on of a run, but for its rows.

    Raises:
        RequestError: the device cannot compute what is asked for.
    """
    names = config.adapter.target_modules
    full = config.adapter.method == "full"
    separate = config.model.reference is not None
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
    """The form of the weights; refuses one that the device has no arithmetic for."""
    form = QUANTIZED.get(config.model.quantization)
    if form == "fp8" and (gpu is None or gpu.capability < FP8_FROM):
        where = f"{gpu.name} has compute capability {gpu.capability:g}" if gpu else "a processor has no FP8 arithmetic"
        raise RequestError(
            f"model.quantization fp8 needs a GPU of compute capability {FP8_FROM} or higher (RTX 40, L4, H100 and "
            f"newer), and {where}; set model.quantization to nf4 or none"
        )
    if form is not None:
        return form
    if config.model.dtype != "auto":
        return DTYPES[config.model.dtype]
    if gpu is None:
        return "f32"
    return "bf16" if gpu.capability >= BF16_FROM else "f16"


def _with_reference(memory: MemoryEstimate, reference: ModelShape, plan: MemoryPlan) -> MemoryEstimate:
    return MemoryEstimate({**memory.items, "reference": frozen_bytes(reference, plan)})


def _simulated_rows(tokens: Any, pairs: int, budget: int, seed: int) -> Iterator[list[int]]:
    """Yield the tokens of the rows of steps, pairs drawn as an epoch draws them."""
    order = np.random.default_rng(seed).permutation(len(tokens))
    for start in range(0, min(len(order), pairs * SIMULATED_STEPS), pairs):
        step = tokens[order[start : start + pairs]].tolist()
        yield [sum(step[index] for index in row) for row in pack_rows(step, budget)]


def _kept_of(shape: ModelShape, plan: MemoryPlan, rows: Rows, machine: Machine, tokens: float) -> int:
    """Layers that a row of the mean size keeps."""
    for kept in range(shape.layers, rows.kept_layers, -1):
        if estimate_memory(shape, replace(plan, row_tokens=tokens, kept_layers=kept)).total <= machine.limit:
            return kept
    return rows.kept_layers


def _reads_reference(config: RunConfig) -> bool:
    """Whether the losses, added up, read the reference policy; `sft` alone has one for its metrics."""
    losses = set(config.preference.loss)
    return losses <= {"sft"} or not losses <= REFERENCE_FREE | {"sft"}


def _passes(config: RunConfig, epochs: float) -> float:
    """Passes over the tokens of a step, the reference's spread over the epochs that remember it."""
    reference = 1.0 if _reads_reference(config) else 0.0
    if config.training.reference_store != "off" or config.adapter.method == "full":
        reference /= max(ceil(epochs), 1)
    policy = 3 if config.adapter.method == "full" else 2
    return policy + reference + (0 if SORTED_LOSSES.isdisjoint(config.preference.loss) else 1)


def _alternatives(config: RunConfig, target: Target, processes: int) -> Iterator[Alternative]:
    """Yield what fits: the fewest and mildest changes of settings, shorter pairs, and the smallest GPU."""
    changes: dict[str, Any] = {}
    eased = None
    for change in _changes(config, target):
        changes |= change
        if changes.get("adapter.method") == "lora":
            changes.pop("training.optimizer", None)  # an adapter's states are small
        eased = _tried(config, target, change, processes) or _tried(config, target, changes, processes)
        if eased is not None:
            yield eased
            break
    shorter = _shorter(config, target, {} if eased else changes, processes) or _shorter(config, target, {}, processes)
    if shorter is not None:
        yield shorter
    for base in ({}, changes) if changes and eased is None else ({},):
        moved = _on_another_gpu(config, target, base, processes)
        if moved is not None:
            yield moved


def _on_another_gpu(
    config: RunConfig, target: Target, changes: Mapping[str, Any], processes: int
) -> Alternative | None:
    """The smallest known GPU, larger than the one at hand, on which the run with these changes fits."""
    quantization = _changed(config, changes).model.quantization
    least = FP8_FROM if quantization == "fp8" else BF16_FROM
    for gpu in sorted(known_gpus().values(), key=lambda gpu: (gpu.memory_gib, gpu.bandwidth_gbs)):
        if target.gpu is None or gpu.memory_gib * GIB <= target.machine.memory or gpu.capability < least:
            continue
        found = _tried(config, replace(target, gpu=gpu, machine=gpu_machine(gpu)), changes, processes)
        if found is not None:
            return replace(found, gpu=gpu.name)
    return None


def _changes(config: RunConfig, target: Target) -> Iterator[dict[str, Any]]:
    """Yield changes that save memory, from the one that costs least."""
    training, gpu = config.training, target.gpu
    if training.token_budget != "auto":
        yield {"training.token_budget": "auto"}
    if training.activations not in ("auto", "offload"):
        yield {"training.activations": "auto"}
    if gpu is not None and training.optimizer == "adamw_torch" and config.adapter.method == "full":
        yield {"training.optimizer": "adamw_8bit"}
    if config.adapter.method == "full":
        yield {"adapter.method": "lora"}
    if gpu is not None and config.model.quantization == "none" and gpu.capability >= FP8_FROM:
        yield {"adapter.method": "lora", "model.quantization": "fp8"}
    if gpu is not None and config.model.quantization != "nf4":
        yield {"adapter.method": "lora", "model.quantization": "nf4"}


def _tried(config: RunConfig, target: Target, changes: Mapping[str, Any], processes: int) -> Alternative | None:
    """The run with these changes, if it fits."""
    plan = _planned(_changed(config, changes), target, processes)
    if not plan.fits:
        return None
    values = config.model_dump()
    settings = tuple(
        f"{name}={value}"
        for name, value in changes.items()
        if values[name.partition(".")[0]][name.partition(".")[2]] != value
    )
    return Alternative(settings, None, plan.rows.memory.total)


def _shorter(config: RunConfig, target: Target, base: Mapping[str, Any], processes: int) -> Alternative | None:
    """The longest sequences with which the run fits, in whole 64s."""
    lengths, now = target.lengths, config.data.max_length
    longest = int((lengths.prompt + np.maximum(lengths.chosen, lengths.rejected)).max())
    low, high = 0, (min(longest, now) if now else longest) // SHORTEST
    best = None
    while low < high:
        middle = (low + high + 1) // 2
        tried = _tried(config, target, {**base, "data.max_length": SHORTEST * middle}, processes)
        low, high, best = (middle, high, tried) if tried else (low, middle - 1, best)
    return best


def _changed(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    values = config.model_dump()
    for name, value in changes.items():
        section, _, key = name.partition(".")
        values[section][key] = value
    return RunConfig.model_validate(values)
