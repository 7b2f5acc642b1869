"""Experts of any transformers model through `expert_mlp`, while a step runs.

transformers keeps the experts of a layer as stacked weights, and marks their class with how these lie
(`use_experts_implementation`). PEFT wraps the module once for each weight that `target_parameters` names, and at every
call adds s B A to the whole stack, which takes memory and time of a second model. Here adapters stay factors.

What a module computes is tested: its output for a synthetic input must be its own. A module that does more, whose
weights are trained, or that something looks at, runs its own forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn

from wishbone.fused.coverage import Site
from wishbone.fused.gathered import GatheredUnits
from wishbone.fused.instance_attributes import REPLACED
from wishbone.fused.lockstep import adapters_of_reference, tensors_of, together
from wishbone.fused.lockstep_calls import apart, only_adapters
from wishbone.fused.lora_layer import Forward, has_hooks
from wishbone.fused.mlp import TOLERANCE
from wishbone.fused.parts import part_of
from wishbone.fused.rounding import differs_by_rounding
from wishbone.ops.expert_mlp import (
    ClampedGate,
    ExpertsOfReference,
    Gate,
    GatedProduct,
    GateOf,
    QuantizedStack,
    StackedAdapter,
    StackedLinear,
    expert_mlp,
    grouped,
)
from wishbone.ops.frozen_linear import DENSE

UNKNOWN = "transformers does not say how their weights lie"
MORE = "they compute more than two matrices and a gate"
UNREADABLE = "their weights are in a form that cannot be read"
ROW_BYTES = 16
"""Grouped products on CUDA take rows of a multiple of so many bytes."""


class FusedExperts:
    """Finds the experts of a model and switches them on and off.

    Args:
        model: a transformers model, with or without PEFT's adapters. Nothing of it is changed.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers: list[_Experts] = []
        self._not_fused: list[Site] = []
        self._switched: list[_Experts] = []
        self._depth = 0
        inside: set[nn.Module] = set()
        gathered = GatheredUnits(model)
        for name, module in model.named_modules():
            if module in inside or not (isinstance(module, ParamWrapper) or part_of(module) == "experts"):
                continue
            inside.update(module.modules())
            base = base_of(module)
            if part_of(base) != "experts":
                continue
            layer = _Experts(name, module, base)
            with gathered.around(module):
                if (reason := layer.why_not()) is None and not layer.agrees():
                    reason = MORE
            if reason is None:
                self._layers.append(layer)
            else:
                self._not_fused.append(Site("experts", layer.site, reason))

    @property
    def switched_on(self) -> set[nn.Module]:
        """Modules that run fused now, with what is inside them."""
        return {module for layer in self._switched for module in layer.module.modules()}

    @property
    def in_one_call(self) -> list[str]:
        """Names of layers whose experts are computed in one call for all, whatever their routers choose."""
        return [layer.site for layer in self._layers if layer.in_one_call]

    def sites(self) -> Iterator[Site]:
        """Yield the experts of each layer once, fused or not as they ran so far."""
        found = {site.name: site for site in self._not_fused}
        for layer in self._layers:
            reason = (layer.why_not() or MORE) if layer.ran_own else None
            found.setdefault(layer.site, Site("experts", layer.site, reason))
        yield from found.values()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Context of forward passes and of the backward passes that recompute them; it may be entered again inside."""
        if self._depth == 0:
            for layer in self._layers:
                if "forward" in vars(layer.module):
                    layer.ran_own = True
                else:
                    vars(layer.module)["forward"] = layer.forward_of(layer.module.forward)
                    self._switched.append(layer)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                for layer in self._switched:
                    vars(layer.module).pop("forward", None)
                self._switched.clear()


class _Experts:
    """The experts of one layer.

    Attributes:
        site: the name that a table of parts gives them; some families have two modules of experts in a layer.
        module: what the model calls: the experts, or PEFT's wrappers around them.
        ran_own: whether a call ran the module's own forward.
    """

    def __init__(self, name: str, module: nn.Module, base: Any) -> None:
        self.site = name.rpartition(".")[0]
        self.module, self._base = module, base
        self.ran_own = False
        self._parts = list(module.modules())
        self._wrappers = list(_wrappers(module))
        self._flags = [vars(wrapper) for wrapper in self._wrappers]
        self._gate: Gate | None = None

    @property
    def in_one_call(self) -> bool:
        """Whether all experts are computed in one call for the dtype and device of their weights."""
        return grouped.in_one_call(getattr(self._base, _names(self._base)[0]))

    def why_not(self) -> str | None:
        """Return why the module must run its own forward now, or None."""
        base = self._base
        if not hasattr(base, "is_transposed"):
            return UNKNOWN
        if any(map(has_hooks, self._parts)):
            return "hooks look at their inputs and outputs"
        if any("forward" in vars(one) for one in (*self._wrappers, base) if one is not self.module):
            return REPLACED
        if getattr(base, "has_post_expert_norm", False) or getattr(base, "_is_expert_parallel", False):
            return MORE
        parameters = dict(base.named_parameters())
        if any(parameter.requires_grad for parameter in parameters.values()):
            return "their weights are trained"
        up, down = (parameters.get(name) for name in _names(base))
        if up is None or down is None or not (_can_be_read(up) and _can_be_read(down)):
            return UNREADABLE
        if up.dim() != 3 or down.dim() != 3 or up.dtype != down.dtype or up.dtype not in DENSE:
            return UNREADABLE
        if any(size * up.element_size() % ROW_BYTES for weight in (up, down) for size in weight.shape[1:]):
            return "the rows of their weights are not multiples of 16 bytes"
        if any(wrapper.parameter_name not in _names(base) for wrapper in self._wrappers):
            return "an adapter is on their biases"
        for wrapper in self._wrappers:
            if wrapper.disable_adapters and wrapper.merged:
                return "their adapter is merged and switched off"
        return None

    def agrees(self) -> bool:
        """Return whether the fused output for a synthetic input equals the module's own, but for rounding."""
        up, down = (self._linear(name) for name in _names(self._base))
        if up.weight.is_meta:
            return False
        count, hidden, _ = down.shape
        x = (
            torch.arange(5 * hidden, dtype=torch.float64, device=up.weight.device)
            .mul(0.7)
            .add(0.3)
            .sin()
            .view(5, hidden)
        )
        chosen = torch.arange(10, device=x.device).mul(3).remainder(count).view(5, 2)
        x = x.to(up.weight.dtype)
        share = torch.tensor([[0.7, 0.3]] * 5, dtype=x.dtype, device=x.device)
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            ours = self._compute(x, chosen, share)
            own = self.module(x, chosen, share)
        return differs_by_rounding(ours, own, TOLERANCE)

    def forward_of(self, own_forward: Forward) -> Forward:
        """Return what replaces the module's forward."""
        own = apart(self.module, own_forward)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if kwargs or len(args) != 3 or self.why_not() is not None:
                self.ran_own = True
                return own(*args, **kwargs)
            adapters = adapters_of_reference(args)
            if adapters is None:
                return self._compute(*args)
            x, chosen, share = tensors_of(args, "reference")
            reference_call = self._reference(x, chosen, share, adapters)
            x, chosen, share = tensors_of(args, "policy")
            policy = self._compute(x, chosen, share, reference_call)
            assert reference_call.y is not None
            return together(policy, reference_call.y.to(policy.dtype), adapters)

        return forward

    def _compute(
        self, x: Tensor, chosen: Tensor, share: Tensor, reference_call: ExpertsOfReference | None = None
    ) -> Tensor:
        up, down = (self._linear(name) for name in _names(self._base))
        if self._gate is None:
            self._gate = _gate_of(self._base, up)
        return expert_mlp(x.to(up.weight.dtype), chosen, share, up, down, self._gate, reference_call).to(x.dtype)

    def _reference(self, x: Tensor, chosen: Tensor, share: Tensor, adapters: tuple[str, ...]) -> ExpertsOfReference:
        """The reference's call, with these adapters."""
        with only_adapters(self._flags, adapters):
            up, down = (self._linear(name) for name in _names(self._base))
        return ExpertsOfReference(x.to(up.weight.dtype), chosen, share, up.adapter, down.adapter)

    def _linear(self, name: str) -> StackedLinear:
        base = self._base
        bias = getattr(base, f"{name}_bias", None) if base.has_bias else None
        bare = StackedLinear(getattr(base, name), bias, transposed=base.is_transposed)
        parts = [part for one in self._wrappers if one.parameter_name == name for part in _adapters(one, bare.shape)]
        return replace(bare, adapter=_as_one(parts))


def base_of(module: Any) -> Any:
    """Return the module under PEFT's wrappers of its parameters, or the module itself where there are none."""
    while isinstance(module, ParamWrapper):
        module = module.base_layer
    return module


def _wrappers(module: Any) -> Iterator[Any]:
    while isinstance(module, ParamWrapper):
        yield module
        module = module.base_layer


def _names(base: Any) -> tuple[str, str]:
    """Names of the first and the second stack of weights."""
    return "gate_up_proj" if base.has_gate else "up_proj", "down_proj"


def _can_be_read(weight: Tensor) -> bool:
    return type(weight.data) is Tensor or isinstance(weight, QuantizedStack)


def _adapters(wrapper: Any, shape: tuple[int, int, int]) -> list[StackedAdapter]:
    """The adapters that one of PEFT's wrappers adds to its weight of this shape, [experts, N, K], now."""
    if wrapper.disable_adapters or wrapper.merged:
        return []
    found = []
    for name in wrapper.active_adapters:
        if name in wrapper.lora_A:
            a, b = wrapper.lora_A[name].weight, wrapper.lora_B[name].weight
            experts, n, k = shape
            found.append(
                StackedAdapter(
                    a.view(experts, -1, k),
                    b.view(n, -1, experts).permute(2, 0, 1),
                    float(wrapper.scaling[name]),
                )
            )
    return found


def _as_one(parts: Sequence[StackedAdapter]) -> StackedAdapter | None:
    """Adapters as one: their A one under the other, their scaled B side by side."""
    if len(parts) < 2:
        return parts[0] if parts else None
    return StackedAdapter(
        torch.cat([part.a for part in parts], 1), torch.cat([part.b * part.scale for part in parts], 2)
    )


def _gate_of(base: Any, up: StackedLinear) -> Gate:
    """The gate of a module: a gated product that has a kernel where the values agree, or the module's function."""
    function = base._apply_gate if base.has_gate else base.act_fn
    inner = up.shape[1]
    u = (
        torch.linspace(-9, 9, 2 * inner, dtype=torch.float64, device=up.weight.device)
        .mul(3)
        .sin()
        .mul(60)
        .view(2, inner)
        .float()
    )
    with torch.no_grad():
        own = function(u)
    if base.has_gate and inner % 2 == 0:
        known: list[Gate] = [GatedProduct("silu"), GatedProduct("gelu_tanh")]
        numbers = getattr(base, "alpha", None), getattr(base, "limit", None)
        if all(isinstance(number, (int, float)) for number in numbers):
            known.append(ClampedGate(float(numbers[0]), float(numbers[1])))  # type: ignore[arg-type]
        for gate in known:
            ours = gate.forward(u)
            if own.shape == ours.shape and torch.allclose(own, ours, rtol=1e-4, atol=1e-4):
                return gate
    return GateOf(function)
