"""Gated MLPs of any transformers model as one function each.

An MLP is recognized by its parts, and what it computes is found out by trying: its activation on a range of numbers,
the whole module on a made-up input. Where the module's own output differs by more than rounding (a multiplier, a norm,
a clamp between), it is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from wishbone.fused.lora_layer import Forward, LayerReader, base_of, columns, has_hooks, input_features
from wishbone.fused.quantized_input import QuantizedInput
from wishbone.ops.gated_mlp import Activation, activate, gated_mlp
from wishbone.ops.lora_linear import compute_dtype

LAYERS = (("gate_proj", "up_proj", "down_proj"), ("gate_up_proj", "down_proj"))
"""Names that model families give the linear layers, in the order of `gated_mlp`."""
ACTIVATIONS = ("act_fn", "activation_fn")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Relative difference between a module's own output and ours that rounding explains."""


class FusedMlp:
    """One MLP of a model.

    Args:
        name: of the module in its model.
        module: the MLP.
        layers: its linear layers, in the order of `gated_mlp`.
        activation_module: the module that computes its activation.
        activation: what that is.
        quantized: where fused norms leave their output for FP8 layers.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        layers: tuple[nn.Module, ...],
        activation_module: nn.Module,
        activation: Activation,
        quantized: QuantizedInput,
    ) -> None:
        self.name, self.module, self.layers = name, module, layers
        self.tile_tokens: int | None = None
        self._parts = (*layers, activation_module)
        self._activation, self._quantized = activation, quantized
        self._readers = [LayerReader(layer) for layer in layers]

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """Modules whose forward is replaced."""
        return (self.module,)

    def read_own(self) -> None:
        """Read the weights of layers without adapter, before their forward is replaced."""
        for reader in self._readers:
            reader.read_own()

    def forwards(self) -> Iterator[Forward]:
        """Yield what replaces the forward of each of `modules`."""
        own_forward = self.module.forward

        def forward(x: Any, *args: Any, **kwargs: Any) -> Any:
            if args or kwargs or not isinstance(x, Tensor):
                return own_forward(x, *args, **kwargs)
            y = self.compute(x)
            return own_forward(x) if y is None else y

        yield forward

    def compute(self, x: Tensor) -> Tensor | None:
        """Return the MLP's output; None if one of its layers cannot be read or has hooks, which would be passed by."""
        if any(map(has_hooks, self._parts)):
            return None
        dtype = compute_dtype(x)
        found = [reader.read(x, dtype) for reader in self._readers]
        read = [layer for layer in found if layer is not None]
        if len(read) < len(found):
            return None
        rows = None if self.tile_tokens else self._quantized.take(x, read[0].weight)
        return gated_mlp(x, *columns(read), activation=self._activation, tile_tokens=self.tile_tokens, prepared=rows)


def fused_mlp_of(
    module: nn.Module, name: str, linears: dict[str, nn.Module], quantized: QuantizedInput | None = None
) -> FusedMlp | None:
    """Return the MLP that a module is, after comparing its output with ours; None if it is none, or another kind.

    Args:
        module: any module of a model; nothing of it is changed. One with hooks, which would see the trial, is none.
        name: of the module.
        linears: its children that are linear layers which can be read, by name.
        quantized: where fused norms leave their output for FP8 layers; None without such norms.
    """
    activations = [getattr(module, a) for a in ACTIVATIONS if isinstance(getattr(module, a, None), nn.Module)]
    names = next((names for names in LAYERS if all(n in linears for n in names)), None)
    if names is None or len(activations) != 1 or any(map(has_hooks, module.modules())):
        return None
    others = [m for n, m in module.named_children() if n not in names and m is not activations[0]]
    activation = _activation_of(activations[0], linears[names[0]])
    if activation is None or not all(map(_does_nothing, others)):
        return None
    layers = tuple(linears[n] for n in names)
    mlp = FusedMlp(name, module, layers, activations[0], activation, quantized or QuantizedInput())
    return mlp if _agrees(mlp) else None


def _does_nothing(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity) or (isinstance(module, nn.Dropout) and module.p == 0)


@torch.no_grad()
def _activation_of(module: nn.Module, beside: nn.Module) -> Activation | None:
    """Return which activation a module computes, or None."""
    device = next(beside.parameters()).device
    if device.type == "meta":
        return None
    numbers = torch.linspace(-6, 6, 97, device=device)
    values = module(numbers)
    known: tuple[Activation, ...] = ("silu", "gelu_tanh")
    return next((name for name in known if torch.allclose(values, activate(numbers, name), rtol=0, atol=2e-5)), None)


@torch.no_grad()
def _agrees(mlp: FusedMlp) -> bool:
    """Whether our output for a made-up input is the module's own, but for rounding."""
    mlp.read_own()
    layer = mlp.layers[0]
    base = base_of(layer)
    packed = getattr(base.weight, "quant_state", None)
    dtype = getattr(base, "compute_dtype", None) or (base.weight.dtype if packed is None else packed.dtype)
    if dtype not in TOLERANCE:
        return False
    inputs = input_features(layer)
    made_up = torch.arange(5 * inputs, dtype=torch.float64, device=base.weight.device).mul(0.7).add(0.3).sin()
    x = made_up.view(1, 5, inputs).to(dtype)
    with torch.autocast(x.device.type, enabled=False):
        ours = mlp.compute(x)
        own = mlp.module(x)
    if ours is None or not isinstance(own, Tensor) or own.shape != ours.shape:
        return False
    return bool((ours.double() - own.double()).norm() <= TOLERANCE[dtype] * own.double().norm())
