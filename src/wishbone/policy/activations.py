"""Activations of a row: kept for the backward pass, recomputed by layer, or recomputed from inputs on the host.

Keeping a layer's activations saves one forward pass of it. Recomputing holds one layer's at a time beside the layers'
inputs (activation checkpointing). Offloading moves these inputs to host memory too (`offload.py`). The gradients are
the same. How many layers a row keeps follows from the `Room` of its `Execution`. The last layers are kept: the backward
pass frees them before the first recomputed one needs memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, get_args

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from wishbone.engine.execution import EVERYTHING, Execution, Treatment
from wishbone.fused.instance_attributes import InstanceAttributes
from wishbone.policy.offload import offloaded_activations

CHECKPOINT = "_gradient_checkpointing_func"
"""Attribute of transformers' layers: what they are recomputed with."""


def checkpointed_layers(model: nn.Module) -> list[Any]:
    """Return the layers of a model that can be recomputed, in the order they run in."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def allow_recompute(model: PreTrainedModel) -> None:
    """Switch on activation checkpointing in a causal language model, so that `activations_of_row` can choose layers."""
    if model.supports_gradient_checkpointing:
        # transformers 5.24 renamed the method, and the old name warns.
        renamed = getattr(model, "activation_checkpointing_enable", None)
        (renamed or model.gradient_checkpointing_enable)({"use_reentrant": False})


@contextmanager
def activations_of_row(
    layers: Sequence[Any], tokens: int, execution: Execution, tower: Sequence[Any] = ()
) -> Iterator[None]:
    """Context of a row's forward pass: keeps, recomputes or offloads as there is room.

    Args:
        layers: the `checkpointed_layers` of the model for text.
        tokens: of the row.
        execution: its `room` says how many layers are kept, its `offload` whether inputs of the others are moved.
        tower: those of vision towers. An image has several times as many patches as tokens, so they are recomputed
            unless everything is to be kept; a frozen tower keeps nothing either way (`image_stem.py`).
    """
    room = execution.room
    if room is None:
        yield
        return
    recomputed = len(layers) - room.kept(tokens, len(layers))
    for index, layer in enumerate(layers):
        layer.gradient_checkpointing = index < recomputed
    for layer in tower:
        layer.gradient_checkpointing = room != EVERYTHING
    with offloaded_activations() if offloads(len(layers), tokens, execution) else nullcontext():
        yield


def offloads(layers: int, tokens: int, execution: Execution) -> bool:
    """Return whether inputs of layers wait in host memory in a row of `tokens` of a model with so many `layers`."""
    room = execution.room
    if room is None or room.kept(tokens, layers) == layers:
        return False
    return execution.offload == "always" or (execution.offload == "as needed" and not room.holds(tokens))


@contextmanager
def drawing_nothing(layers: Sequence[Any]) -> Iterator[None]:
    """Context of a pass that draws no random numbers, so that recomputing its layers need not set them back.

    That asks the device for the state of its generator, which nothing may ask for while CUDA graphs are recorded.
    """
    checkpoints, replaced = [layer for layer in layers if CHECKPOINT in vars(layer)], InstanceAttributes()
    for layer in checkpoints:
        replaced.add(layer, CHECKPOINT, partial(vars(layer)[CHECKPOINT], preserve_rng_state=False))
    with replaced.replaced():
        yield


def choose_activations(model: nn.Module, treatment: Treatment) -> None:
    """Store on a model how training treats its activations; the trainer reads it with `chosen_activations`."""
    assert treatment in get_args(Treatment)
    model.wishbone_activations = treatment  # type: ignore[assignment]


def chosen_activations(model: nn.Module) -> Treatment | None:
    """Return what `choose_activations` noted on a model (an adapter's or its base's), or None."""
    treatment: Treatment | None = getattr(model, "wishbone_activations", None)
    return treatment
