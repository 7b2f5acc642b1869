"""What fits where a run does not: smaller forms of weights, shorter pairs, a larger GPU.

Each alternative is planned like the run itself before it is offered, and fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wishbone.config.schema import RunConfig
from wishbone.planning.gpus import BF16_FROM, FP8_FROM, INT8_FROM, known_gpus
from wishbone.planning.memory import GIB
from wishbone.planning.run_plan import Target, chosen_rows, gpu_machine

SHORTEST = 64
"""Shortest data.max_length that is offered, in tokens."""


@dataclass(frozen=True)
class Alternative:
    """What fits instead: settings to change, or a GPU to run on, and the bytes that the run then takes."""

    settings: tuple[str, ...]
    gpu: str | None
    memory: float


def alternatives(config: RunConfig, target: Target, *, processes: int = 1) -> Iterator[Alternative]:
    """Yield what fits: the fewest and mildest changes of settings, shorter pairs, and the smallest larger GPU."""
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
    """The smallest known GPU, larger than the one at hand, on which the run with these changes fits; no laptop's."""
    quantization = _changed(config, changes).model.quantization
    least = {"fp8": FP8_FROM, "int8": INT8_FROM}.get(quantization, BF16_FROM)
    offered = [gpu for gpu in known_gpus().values() if "Laptop" not in gpu.name]
    for gpu in sorted(offered, key=lambda gpu: (gpu.memory_gib, gpu.bandwidth_gbs)):
        if target.gpu is None or gpu.memory_gib * GIB <= target.machine.memory or gpu.capability < least:
            continue
        found = _tried(config, replace(target, gpu=gpu, machine=gpu_machine(gpu)), changes, processes)
        if found is not None:
            return replace(found, gpu=gpu.name)
    return None


def _changes(config: RunConfig, target: Target) -> Iterator[dict[str, Any]]:
    """Yield changes that save memory, the one that costs least first."""
    training, gpu = config.training, target.gpu
    if training.token_budget != "auto":
        yield {"training.token_budget": "auto"}
    if training.activations not in ("auto", "offload"):
        yield {"training.activations": "auto"}
    if gpu is not None and training.optimizer == "adamw_torch" and config.adapter.method == "full":
        yield {"training.optimizer": "adamw_8bit"}
    if config.adapter.method == "full":
        yield {"adapter.method": "lora"}
    if gpu is not None and config.model.quantization == "none" and gpu.eight_bits is not None:
        yield {"adapter.method": "lora", "model.quantization": gpu.eight_bits}
    if gpu is not None and config.model.quantization != "nf4":
        yield {"adapter.method": "lora", "model.quantization": "nf4"}


def _tried(config: RunConfig, target: Target, changes: Mapping[str, Any], processes: int) -> Alternative | None:
    """The run with these changes, if it fits."""
    memory = chosen_rows(_changed(config, changes), target, processes=processes).memory.total
    if memory > target.machine.limit:
        return None
    values = config.model_dump()
    settings = tuple(
        f"{name}={value}"
        for name, value in changes.items()
        if values[name.partition(".")[0]][name.partition(".")[2]] != value
    )
    return Alternative(settings, None, memory)


def _shorter(config: RunConfig, target: Target, base: Mapping[str, Any], processes: int) -> Alternative | None:
    """The longest data.max_length with which the run fits, a multiple of 64."""
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
