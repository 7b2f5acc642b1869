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

    def launches_by_shape(self, text: str, layers: int) -> bool:
        """Return whether the MLP or the experts of each layer are fused, so that no value decides what is launched.

        Args:
            text: name of the module that has the layers; "" if it is the model.
            layers: how many there are.
        """
        found = [name for name in (*self.linears.mlps, *self.experts.in_one_call) if name.startswith(text)]
        apart = any(site.why_not is not None and site.name.startswith(text) for site in self.experts.sites())
        return not apart and len({_layer_of(name) for name in found}) == layers

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


def _layer_of(name: str) -> str:
    """Return the name of the layer that a module with this name is in: up to its first number."""
    parts = name.split(".")
    return ".".join(parts[: next((i for i, part in enumerate(parts) if part.isdigit()), len(parts)) + 1])
