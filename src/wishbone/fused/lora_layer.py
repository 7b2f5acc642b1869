"""What a linear layer currently computes, read from the layer: frozen weight, bias, adapter.

PEFT keeps the state of an adapter in each layer: switched off, merged, which of several are on, scaled by what. It is
read at every call, so that switching adapters needs no word to us. A layer that does anything beyond

    W x + b + sum over active adapters of s B A x

(dropout that is on, DoRA and other variants, biases of adapters, a base that is trained or unknown) runs its own
forward.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from wishbone.fused.instance_attributes import REPLACED
from wishbone.model.eight_bit_linear import EightBitLinear
from wishbone.ops.frozen_linear import FrozenWeight, NF4Weight, frozen_weight_of
from wishbone.ops.lora_linear import Adapter

Forward = Callable[..., Any]

OFF, ACTIVE = "_disable_adapters", "_active_adapter"
"""Attributes in which each of PEFT's layers keeps whether its adapters are off, and the names of those that are on."""


@dataclass(frozen=True)
class PlainLinear:
    """A linear layer as `lora_linears` computes it."""

    weight: FrozenWeight
    bias: Tensor | None
    adapter: Adapter | None


def is_lora_linear(module: nn.Module) -> bool:
    """Return whether a module is PEFT's LoRA over a linear layer, of the kinds that can be read."""
    return type(module) in (LoraLinear, _lora_linear_4bit())


def base_of(module: Any) -> Any:
    """Return the linear layer under PEFT's LoRA layer, or the layer itself where there is none."""
    return module.base_layer if is_lora_linear(module) else module


def input_features(module: Any) -> int | None:
    """Return the size of a linear layer's input; None for modules of another kind."""
    features = getattr(module, "in_features", None)
    return features if isinstance(features, int) else None


def output_features(module: Any) -> int | None:
    """Return the size of a linear layer's output; None for modules of another kind."""
    features = getattr(module, "out_features", None)
    return features if isinstance(features, int) else None


def has_hooks(module: nn.Module) -> bool:
    """Return whether a module has hooks, which see its inputs and outputs only if it is called itself."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def columns(
    layers: Sequence[PlainLinear],
) -> tuple[list[FrozenWeight], list[Tensor | None], list[Adapter | None]]:
    """Return weights, biases and adapters of layers, as the ops take them."""
    return [one.weight for one in layers], [one.bias for one in layers], [one.adapter for one in layers]


class LayerReader:
    """Reads what one linear layer computes now.

    It runs at each call of each layer, so PEFT's and PyTorch's attributes are looked up directly, and what kind of
    adapters are on is looked at closely only when it is not what it was when they were last on, or last off.

    Args:
        module: PEFT's LoRA layer, or a linear layer without adapter.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._is_lora = is_lora_linear(module)
        self._own: FrozenWeight | None = None
        self._known: dict[tuple[Any, ...], tuple[tuple[Any, ...], list[Adapter] | None]] = {}

    def read_own(self) -> None:
        """Read the frozen weight of a layer without adapter; to be called while the layer has its own forward."""
        self._own = None if self._is_lora else frozen_weight_of(self.module)

    def state(self) -> tuple[Any, ...]:
        """Return a value that is equal at two times only if the layer was in the same state of adapters at both."""
        own = vars(self.module)
        if not self._is_lora:
            return (_version(own["_parameters"]["weight"]),)
        base = vars(own["_modules"]["base_layer"])
        kind, factors = _kind_of(own)
        hooks = len(base["_forward_hooks"]) + len(base["_forward_pre_hooks"]) + ("forward" in base)
        return kind, hooks, [_version(tensor) for tensor in (base["_parameters"]["weight"], *factors)]

    def read(self, x: Tensor, dtype: torch.dtype) -> PlainLinear | None:
        """Return what the layer computes, or None where it must run its own forward.

        Args:
            x: the input, for its device and dtype.
            dtype: that of the matrix product, autocast's or that of `x`.
        """
        base: Any = self.module
        weight, adapter = self._own, None
        if self._is_lora:
            adapters = self._adapters()
            if adapters is None:
                return None
            base = vars(self.module)["_modules"]["base_layer"]
            weight, adapter = frozen_weight_of(base), _as_one(adapters)
        if weight is None or not _takes(base, weight, x, dtype):
            return None
        return PlainLinear(weight, base.bias, adapter)

    def read_reference(self, adapters: Sequence[str]) -> tuple[Adapter | None] | None:
        """Return the adapter that the layer adds in the reference, or None where it must run its own forward.

        Args:
            adapters: names of the adapters that are on in the reference.
        """
        if not self._is_lora or not adapters:
            return (None,)
        own = vars(self.module)
        before = own[OFF], own[ACTIVE]
        own[OFF], own[ACTIVE] = False, list(adapters)
        try:
            found = self._adapters()
        finally:
            own[OFF], own[ACTIVE] = before
        return None if found is None else (_as_one(found),)

    def _adapters(self) -> list[Adapter] | None:
        """The adapters that the layer adds now, or None where it does anything but add them."""
        own = vars(self.module)
        kind, _ = _kind_of(own)
        state = own[OFF], str(own[ACTIVE])
        before = self._known.get(state)
        if before is None or before[0] != kind:
            before = self._known[state] = kind, _plain_adapters(self.module)
        return before[1]


def read_all(readers: Sequence[LayerReader], x: Tensor, dtype: torch.dtype) -> list[PlainLinear] | None:
    """Return what layers compute, or None if one of them must run its own forward; arguments as `LayerReader.read`."""
    found = [reader.read(x, dtype) for reader in readers]
    read = [layer for layer in found if layer is not None]
    return read if len(read) == len(found) else None


def _kind_of(own: dict[str, Any]) -> tuple[tuple[Any, ...], list[Tensor]]:
    """What kind of adapters a LoRA layer with the attributes `own` has on, and their factors A, B."""
    modules, active = own["_modules"], own["_active_adapter"]
    a, b, dropout = (vars(modules[part])["_modules"] for part in ("lora_A", "lora_B", "lora_dropout"))
    kinds: list[Any] = []
    factors: list[Tensor] = []
    for name in (active,) if isinstance(active, str) else active:
        if name in a:
            kinds += name, own["scaling"].get(name), _drops(dropout[name])
            for module in (vars(a[name]), vars(b[name])):
                weight = module["_parameters"]["weight"]
                kinds += id(weight), len(module["_forward_hooks"]) + len(module["_forward_pre_hooks"])
                factors.append(weight)
    return (own["_disable_adapters"], len(own["merged_adapters"]), *kinds), factors


def _plain_adapters(layer: Any) -> list[Adapter] | None:
    """The adapters that a LoRA layer adds, their parameters as they are; None where it does anything but add them."""
    if layer.disable_adapters:
        return None if layer.merged else []
    if layer.merged:
        return []
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if not all(_is_plain(layer, name) for name in active):
        return None
    return [Adapter(layer.lora_A[n].weight, layer.lora_B[n].weight, float(layer.scaling[n])) for n in active]


def _version(tensor: Tensor) -> tuple[int, int, bool]:
    """Which tensor it is, and its version."""
    return id(tensor), 0 if tensor.is_inference() else tensor._version, tensor.requires_grad


def _drops(module: nn.Module) -> bool:
    """Whether an adapter's dropout is on; TRL's `disable_dropout`, its default, leaves modules of probability 0."""
    if type(module) is nn.Dropout:
        return module.p > 0 and module.training
    return type(module) is not nn.Identity


def _is_plain(layer: Any, name: str) -> bool:
    """Whether an adapter adds s B A x and nothing else."""
    a, b = layer.lora_A[name], layer.lora_B[name]
    return (
        name not in layer.lora_variant
        and not _drops(layer.lora_dropout[name])
        and type(a) is type(b) is nn.Linear
        and a.bias is None
        and b.bias is None
        and not has_hooks(a)
        and not has_hooks(b)
        and isinstance(layer.scaling[name], (int, float))
    )


def why_not(modules: Sequence[nn.Module]) -> str:
    """Return why a call ran the own forward of some of these linear layers, as far as their state tells."""
    return next(
        (reason for module in modules if (reason := _why_not(module)) is not None),
        "their input has another dtype or device than their weights",
    )


def _why_not(module: Any) -> str | None:
    base = base_of(module)
    if has_hooks(module) or has_hooks(base):
        return "hooks look at their inputs and outputs"
    if "forward" in vars(base):
        return REPLACED
    if frozen_weight_of(base) is None:
        trained = isinstance(base.weight, Tensor) and base.weight.requires_grad
        return "their weights are trained" if trained else f"{type(base).__name__} has a form that cannot be read"
    if base.bias is not None and base.bias.requires_grad:
        return "their biases are trained"
    if not is_lora_linear(module):
        return None
    if module.disable_adapters and module.merged:
        return "their adapter is merged and switched off"
    if _plain_adapters(module) is not None:
        return None
    on = [name for name in module.active_adapters if name in module.lora_A]
    if any(_drops(module.lora_dropout[name]) for name in on):
        return "their adapter has dropout; set it to 0"
    if any(name in module.lora_variant for name in on):
        return "their adapter is a variant of LoRA, such as DoRA"
    return "their adapter does more than add s B A x"


def _as_one(parts: list[Adapter]) -> Adapter | None:
    """Adapters as one: their A one under the other, their scaled B side by side."""
    if len(parts) < 2:
        return parts[0] if parts else None
    return Adapter(torch.cat([part.a for part in parts]), torch.cat([part.b * part.scale for part in parts], dim=1))


def _takes(base: Any, weight: FrozenWeight, x: Tensor, dtype: torch.dtype) -> bool:
    """Whether the base layer multiplies an input like x as its frozen weight does."""
    if base.bias is not None and base.bias.requires_grad:
        return False
    if x.device != base.weight.device or not x.is_floating_point():
        return False
    if isinstance(base, EightBitLinear):
        return base.rounds_input
    if isinstance(weight, NF4Weight):
        return base.compute_dtype in (None, dtype)
    return bool(base.weight.dtype == dtype or torch.is_autocast_enabled(x.device.type))


def _lora_linear_4bit() -> type | None:
    """PEFT's LoRA over 4-bit layers, if it was loaded, without which there are none."""
    return getattr(sys.modules.get("peft.tuners.lora.bnb"), "Linear4bit", None)
