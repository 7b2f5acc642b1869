"""What runs fused in a model's layers while a step runs: linear layers, MLPs, experts, norms, rotary embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from wishbone.fused.coverage import Site
from wishbone.fused.experts import FusedExperts
from wishbone.fused.linear import FusedLinears
from wishbone.fused.lora_layer import input_features, is_lora_linear
from wishbone.fused.norm import FusedNorms
from wishbone.fused.parts import part_of
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
        """Modules that take policy and reference in one call now."""
        return self.linears.switched_on | self.experts.switched_on

    def launches_by_shape(self, text: str, model: nn.Module) -> bool:
        """Return whether no value decides what a layer launches: an MLP or experts are fused, or every token takes all.

        Args:
            text: name of the module that has the layers; "" if it is the model.
            model: that module.
        """
        fused = {_layer_of(name) for name in (*self.linears.mlps, *self.experts.in_one_call)}
        apart = any(site.why_not is not None and site.name.startswith(text) for site in self.experts.sites())
        layers = [layer for layer in model.named_modules() if isinstance(layer[1], GradientCheckpointingLayer)]
        left = [layer for name, layer in layers if _layer_of(f"{text}.{name}" if text else name) not in fused]
        return not apart and bool(layers) and all(map(_takes_every_token, left))

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


def _takes_every_token(module: nn.Module) -> bool:
    """Return whether all parameters lie in attention, recurrences, norms and MLPs, none of which chooses tokens."""
    part = part_of(module)
    if part in ("attention", "recurrence", "norm"):
        return True
    if next(module.parameters(recurse=False), None) is not None:
        return False
    if part != "MLP":
        return all(map(_takes_every_token, module.children()))
    others = [one for one in module.children() if not is_lora_linear(one) and input_features(one) is None]
    return all(next(one.parameters(), None) is None for one in others)


def _layer_of(name: str) -> str:
    """Return the name of the layer that a module with this name is in: up to its first number."""
    parts = name.split(".")
    return ".".join(parts[: next((i for i, part in enumerate(parts) if part.isdigit()), len(parts)) + 1])
