"""What runs fused in a model's layers while a step runs: linear layers, MLPs, experts, norms, rotary embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

from torch import nn

from wishbone.fused.coverage import Site
from wishbone.fused.experts import FusedExperts
from wishbone.fused.linear import FusedLinears
from wishbone.fused.norm import FusedNorms
from wishbone.fused.quantized_input import QuantizedInput
from wishbone.fused.rotary import FusedRotary


class FusedLayers:
    """Finds what can be fused in a model and switches it on and off.

    Args:
        model: a transformers model, with or without PEFT's adapters. Nothing of it is changed.
        norms_everywhere: fuse norms and rotary embeddings on devices other than CUDA, too.
    """

    def __init__(self, model: nn.Module, *, norms_everywhere: bool = False) -> None:
        quantized = QuantizedInput()
        self.linears = FusedLinears(model, quantized)
        self.experts = FusedExperts(model)
        self.norms = FusedNorms(model, everywhere=norms_everywhere, quantized=quantized)
        self.rotary = FusedRotary(model, everywhere=norms_everywhere)

    def sites(self) -> Iterator[Site]:
        """Yield the parts of the layers that have a fused form, fused or not as they ran so far."""
        yield from chain(self.norms.sites(), self.rotary.sites(), self.linears.sites(), self.experts.sites())

    @property
    def switched_on(self) -> set[nn.Module]:
        """Modules that take both halves of a pass of policy and reference now."""
        return self.linears.switched_on | self.experts.switched_on

    @contextmanager
    def running(self, *, tile_tokens: int | None = None) -> Iterator[None]:
        """Context of forward passes and of the backward passes that recompute them; arguments as `FusedLinears`'."""
        with (
            self.linears.running(tile_tokens=tile_tokens),
            self.experts.running(),
            self.norms.running(),
            self.rotary.running(),
        ):
            yield
