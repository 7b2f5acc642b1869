"""Norms with a gate, which end recurrent layers, in one pass each.

What such a module computes is found out by trying, as for other norms (`norm.py`): the gate before the norm or after
it, with the groups that the module names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from wishbone.fused.lockstep import adapters_of_reference, in_lockstep
from wishbone.fused.parts import is_norm
from wishbone.fused.rounding import differs_by_rounding
from wishbone.ops.gated_norm import GatedNorm, gated_norm

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""Relative difference that rounding explains."""


def gated_norm_of(module: nn.Module) -> GatedNorm | None:
    """Return which gated norm a module is, or None; its weight must be frozen."""
    if not is_norm(module):
        return None
    own, inputs = dict(module.named_parameters()), list(inspect.signature(module.forward).parameters)
    weight = own.get("weight")
    if len(own) != 1 or weight is None or weight.ndim != 1 or len(inputs) != 2 or inputs[1] != "gate":
        return None
    if weight.requires_grad or weight.is_meta or weight.dtype not in TOLERANCE or module._forward_hooks:
        return None
    epsilons = [one for one in vars(module).values() if isinstance(one, float) and 0 < one < 0.1]
    groups = {getattr(module, "group_size", None) or len(weight), len(weight)}
    for eps, gate_first, group in product(epsilons, (True, False), groups):
        norm = GatedNorm(eps, gate_first, group)
        if len(weight) % group == 0 and _agrees(module, weight, norm):
            return norm
    return None


def gated_norm_forward(module: nn.Module, own_forward: Callable[..., Any], norm: GatedNorm) -> Callable[..., Any]:
    """Return a forward that runs in one pass where its inputs are as expected, and else the module's own."""
    parameters: dict[str, Any] = vars(module)["_parameters"]

    def forward(x: Tensor, gate: Tensor | None = None) -> Any:
        weight = parameters["weight"]
        if gate is None or weight.requires_grad or x.shape != gate.shape or x.device != weight.device:
            return own_forward(x, gate)
        if adapters_of_reference((x, gate)) is not None:
            return in_lockstep(gated_norm, (x, gate, weight, norm), {})
        return gated_norm(x, gate, weight, norm)

    return forward


def _agrees(module: nn.Module, weight: Tensor, norm: GatedNorm) -> bool:
    """Whether output and gradients for synthetic inputs are the module's own, but for rounding."""
    wave = torch.arange(3 * len(weight), dtype=torch.float64, device=weight.device).mul(0.7).view(3, -1)
    results = []
    with torch.autocast(weight.device.type, enabled=False), torch.enable_grad():
        for function in (module, lambda x, gate: gated_norm(x, gate, weight, norm)):
            x, gate = (
                one.to(weight.dtype).requires_grad_() for one in (wave.add(0.3).sin() + 0.2, wave.mul(1.7).cos())
            )
            y = function(x, gate)
            if not isinstance(y, Tensor) or y.shape != x.shape or y.dtype != x.dtype:
                return False
            results.append((y.detach(), *torch.autograd.grad((y * wave.cos()).sum(), (x, gate))))
    return all(differs_by_rounding(got, own, TOLERANCE) for own, got in zip(*results, strict=True))
