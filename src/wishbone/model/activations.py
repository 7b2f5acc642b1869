"""Activations of a row: kept for the backward pass, or recomputed layer by layer.

Keeping is faster by one forward pass; recomputing holds one layer's activations at a time beside the layers' inputs.
The gradients are the same. The choice is made for every row: rows up to `keep_tokens` are kept, longer ones recomputed,
so that the one long pair of a data set does not decide the memory or the speed of all others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


class Activations:
    """Keeps or recomputes the activations of a model's layers.

    Args:
        model: the causal language model whose layers are concerned.
        keep_tokens: most tokens of a row whose activations are kept; 0 recomputes every row, None leaves the
            layers as their owner set them.
    """

    def __init__(self, model: PreTrainedModel, keep_tokens: int | None) -> None:
        self._keep_tokens = keep_tokens
        self._layers: list[Any] = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        if keep_tokens is not None and model.supports_gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})

    @contextmanager
    def of_row(self, tokens: int) -> Iterator[None]:
        """Context of the forward pass of a row of that many tokens."""
        if self._keep_tokens is not None:
            for layer in self._layers:
                layer.gradient_checkpointing = tokens > self._keep_tokens
        yield
