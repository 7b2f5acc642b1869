"""How far a pass over a long row is, layer by layer, for whoever waits for it.

On a CPU a row of 10,000 tokens takes minutes, and a step ends only with its last row. So while somebody listens
(`wishbone.phases`), the layers that such a row has gone through are counted, forward and, where there are gradients,
backward. Hooks see hidden states and change nothing; shorter rows, GPUs and runs without listeners have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from wishbone.phases import Phase, begin, end, heard

LONG = 2048
"""Tokens of a row from which its layers are counted on a CPU."""
FORWARD, BACKWARD = "forward", "backward"


@contextmanager
def counted_layers(layers: Sequence[nn.Module], tokens: int, device: torch.device) -> Iterator[None]:
    """Context of a row's forward pass, or of a prompt's and the tokens after it; the backward pass is counted, too.

    Args:
        layers: the model's, in the order they run in.
        tokens: of the row.
        device: which computes it.
    """
    if tokens < LONG or device.type != "cpu" or not layers or not heard():
        yield
        return
    forward, backward = (_Layers(name, len(layers), tokens) for name in (FORWARD, BACKWARD))

    def passed(layer: nn.Module, inputs: Any, output: Any) -> None:
        forward.passed()
        hidden = output[0] if isinstance(output, tuple) else output
        if isinstance(hidden, Tensor) and hidden.requires_grad:
            hidden.register_hook(lambda gradient: backward.passed())

    hooks = [layer.register_forward_hook(passed) for layer in layers]
    forward.begin()
    try:
        yield
    finally:
        forward.end()
        for hook in hooks:
            hook.remove()


class _Layers:
    """The layers of one pass as a phase, which the last of them ends."""

    def __init__(self, name: str, layers: int, tokens: int) -> None:
        self._name, self._layers, self._tokens = name, layers, tokens
        self._done = 0
        self._phase: Phase | None = None

    def begin(self) -> None:
        self._phase = begin(self._name, self._layers, "layer", note=f"{self._tokens:,} tokens")

    def passed(self) -> None:
        """Count a layer; those of the passes over single tokens that follow a prompt do not count."""
        if not self._done and self._phase is None:
            self.begin()
        self._done += 1
        if self._phase is not None:
            self._phase.to(self._done)
        if self._done == self._layers:
            self.end()

    def end(self) -> None:
        if self._phase is not None:
            end(self._phase)
            self._phase = None
