"""Memory of a step where FSDP2 divides the model over N devices.

Each device keeps 1/N of weights, gradients and optimizer state. Whole are, while a row runs, the two layers that are in
use or on their way, the embedding and the head:

    memory = (weights + embeddings + adapter + gradients + optimizer + reference) / N + 2 layers + embeddings + the rest

Where all weights are trained, they rest in float32 with float32 gradients and state, and whole layers and their
gradients are in 16 bits. What bitsandbytes keeps beside the codes of NF4 is not divided.
"""

from __future__ import annotations

from dataclasses import replace

from wishbone.planning.memory import (
    COPYING,
    NF4_BYTES,
    MemoryEstimate,
    MemoryPlan,
    estimate_memory,
    expert_bytes,
    linear_bytes,
    trained_parameters,
)
from wishbone.planning.model_shape import ModelShape
from wishbone.planning.room import Machine

WITHOUT_COPY = {"adamw_torch": "adamw_torch_fused", "adagrad": "lion_32bit", "rmsprop": "lion_32bit"}
"""Optimizers with as much state that hold no copy of what is trained while they step."""
MASTER_BYTES = 4
NVLINK_RATE = 300e9
"""Bytes a second that a device receives over NVLink, assumed; the command line names it beside other links."""


def gathered_bytes(shape: ModelShape, plan: MemoryPlan) -> float:
    """Return the bytes that are whole on each device while a row runs."""
    layers = 2 * (linear_bytes(shape, plan) + expert_bytes(shape, plan)) / shape.layers
    gradients = layers if plan.method == "full" else 0.0
    return layers + gradients + plan.element_bytes * shape.embedding_parameters


def gathering_seconds(rows: float, gathered: float) -> float:
    """Return the seconds that devices wait for weights in a step, about; NVLink is assumed.

    Two H200 took a tenth longer for an 8B model in bfloat16 with rows of 8,192 tokens than with whole copies, which is
    what this gives: gathering does not hide behind a row's products.

    Args:
        rows: of a step on one device.
        gathered: bytes of weights that a row receives.
    """
    return rows * gathered / NVLINK_RATE


def uncopied(plan: MemoryPlan) -> MemoryPlan:
    """Return the plan as if the optimizer held no copy; `sharded_memory` adds the part of it that a device holds."""
    return replace(plan, optimizer=WITHOUT_COPY.get(plan.optimizer, plan.optimizer))


def sharded_memory(shape: ModelShape, plan: MemoryPlan, memory: MemoryEstimate, devices: int) -> MemoryEstimate:
    """Return what a device holds of a row whose model is divided.

    Args:
        shape: of the model.
        plan: of the run.
        memory: of the same row with `uncopied(plan)` where the model is whole.
        devices: among which it is divided.
    """
    items, full = dict(memory.items), plan.method == "full"
    masters = MASTER_BYTES / plan.element_bytes if full else 1.0
    for name in ("weights", "embeddings and head", "gradients", "optimizer"):
        items[name] *= masters / devices
    for name in ("adapter", "reference"):
        items[name] /= devices
    if plan.weights == "nf4":
        items["weights"] += (1 - 1 / devices) * (NF4_BYTES - 1 / 2) * shape.linear_parameters
    copy = MASTER_BYTES * trained_parameters(shape, plan) / devices if plan.optimizer in COPYING else 0.0
    items["workspace"] += gathered_bytes(shape, plan) + copy
    return MemoryEstimate(items)


def machine_of_shards(shape: ModelShape, plan: MemoryPlan, machine: Machine, devices: int) -> Machine:
    """Return a machine on which the whole model leaves the room that its shards leave on `machine`."""
    whole = estimate_memory(shape, replace(uncopied(plan), row_tokens=0, kept_layers=0))
    saved = whole.total - sharded_memory(shape, plan, whole, devices).total
    return replace(machine, free=machine.free + saved)
