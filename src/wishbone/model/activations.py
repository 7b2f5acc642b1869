"""Activations of a row: kept for the backward pass, recomputed layer by layer, or recomputed with inputs on the host.

Keeping is faster by one forward pass; recomputing holds one layer's activations at a time beside the layers' inputs;
offloading moves these inputs to host memory too (`offload.py`). The gradients are the same. The choice is made for
every row: rows up to `keep_tokens` are kept, longer ones recomputed, so that the one long pair of a data set does not
decide the memory or the speed of all others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, get_args

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from wishbone.model.offload import offloaded_activations

Treatment = Literal["keep", "recompute", "offload"]
"""What happens to activations between a layer's forward and backward pass."""


class Activations:
    """Keeps, recomputes or offloads the activations of a model's layers.

    Args:
        model: the causal language model whose layers are concerned.
        keep_tokens: most tokens of a row whose activations are kept; 0 recomputes every row, None leaves the
            layers as their owner set them.
        offload: whether what rows that are recomputed do keep, the inputs of layers, waits in host memory.
    """

    def __init__(self, model: PreTrainedModel, keep_tokens: int | None, *, offload: bool = False) -> None:
        self._keep_tokens = keep_tokens
        self._offload = offload
        self._layers: list[Any] = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        if keep_tokens is not None and model.supports_gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})

    @contextmanager
    def of_row(self, tokens: int) -> Iterator[None]:
        """Context of the forward pass of a row of that many tokens."""
        if self._keep_tokens is None:
            yield
            return
        recompute = tokens > self._keep_tokens
        for layer in self._layers:
            layer.gradient_checkpointing = recompute
        with offloaded_activations() if recompute and self._offload else nullcontext():
            yield


def choose_activations(model: nn.Module, treatment: Treatment) -> None:
    """Note on a model how its activations are to be treated in training; the trainer asks `chosen_activations`."""
    assert treatment in get_args(Treatment)
    model.wishbone_activations = treatment  # type: ignore[assignment]


def chosen_activations(model: nn.Module) -> Treatment | None:
    """Return what `choose_activations` noted on a model (an adapter's or its base's), or None."""
    treatment: Treatment | None = getattr(model, "wishbone_activations", None)
    return treatment
