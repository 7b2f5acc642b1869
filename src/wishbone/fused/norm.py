"""RMSNorms of any transformers model in one pass each, for as long as a step runs.

Written in PyTorch, an RMSNorm with frozen weight makes five passes over memory and keeps float32 copies of its input
for the backward pass. Here it keeps its input and one value a row, and where FP8 layers read its output, it writes that
output in e4m3, too (`quantized_input.py`).

What is a norm is found out by trying: a module with one weight and an epsilon whose output and whose gradient are those
of an RMSNorm with weight w or 1 + w.

transformers marks norms for kernels from the Hub (`use_kernel_forward_from_hub`). That registered point does not serve
here: without the package `kernels` it does nothing, and with it `kernelize` replaces the forward of norms for good.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wishbone.fused.instance_attributes import InstanceAttributes, slot_of
from wishbone.fused.quantized_input import QuantizedInput
from wishbone.fused.rounding import differs_by_rounding
from wishbone.ops.fp8_quantize import QuantizedRows, rms_norm, rms_norm_backward, rms_norm_quantize

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Relative difference that rounding explains; norms of transformers round to float32 inside, whatever the dtype."""
EPSILONS = ("variance_epsilon", "eps")


class FusedNorms:
    """Finds RMSNorms in a model and switches them on and off.

    Args:
        model: a transformers model. Nothing of it is changed.
        everywhere: also on devices other than CUDA, where it gains little.
        quantized: where norms leave their output for FP8 layers; None for norms that no fused layer reads.

    Attributes:
        norms: RMSNorms, by name.
    """

    def __init__(self, model: nn.Module, *, everywhere: bool = False, quantized: QuantizedInput | None = None) -> None:
        self._quantized = quantized or QuantizedInput()
        self._attributes = InstanceAttributes()
        self.norms: list[str] = []
        for name, module in model.named_modules():
            slot = slot_of(module)
            if slot is None or not (everywhere or any(p.is_cuda for p in module.parameters())):
                continue
            found = _rms_norm_of(module)
            if found is not None:
                self.norms.append(name)
                forward = _norm_forward(module, getattr(module, slot), *found, self._quantized)
                self._attributes.add(module, slot, forward)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Context of forward passes and of the backward passes that recompute them; it may be entered again inside."""
        with self._attributes.replaced() as outermost:
            try:
                yield
            finally:
                if outermost:
                    self._quantized.clear()


class _RMSNorm(torch.autograd.Function):
    """RMSNorm whose weight is frozen, and its rows in e4m3 if wanted; keeps x and one number a row."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float, quantize: bool
    ) -> tuple[Tensor, QuantizedRows | None]:
        rows, quantized = x.reshape(-1, x.shape[-1]), None
        if quantize:
            normed, quantized, reciprocal_rms = rms_norm_quantize(rows, weight, eps, offset=offset)
        else:
            normed, reciprocal_rms = rms_norm(rows, weight, eps, offset=offset)
        ctx.save_for_backward(x, weight, reciprocal_rms)
        ctx.offset = offset
        return normed.view(x.shape), quantized

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        x, weight, reciprocal_rms = ctx.saved_tensors
        grad_rows, rows = grad.reshape(-1, x.shape[-1]), x.reshape(-1, x.shape[-1])
        dx = rms_norm_backward(grad_rows, rows, weight, reciprocal_rms, offset=ctx.offset)
        return dx.view(x.shape), None, None, None, None


def _norm_forward(
    module: nn.Module, own_forward: Callable[..., Any], eps: float, offset: float, quantized: QuantizedInput
) -> Callable[..., Any]:
    parameters: dict[str, Any] = vars(module)["_parameters"]

    def forward(x: Tensor) -> Any:
        weight = parameters["weight"]
        if weight.requires_grad or x.device != weight.device or x.dtype != weight.dtype:
            return own_forward(x)
        normed, rows = _RMSNorm.apply(x, weight, eps, offset, quantized.begin(module))
        quantized.leave(module, normed, rows)
        return normed

    return forward


def _rms_norm_of(module: nn.Module) -> tuple[float, float] | None:
    """Return epsilon and what is added to the weight, of a module that is an RMSNorm with frozen weight; else None."""
    parameters = dict(module.named_parameters())
    eps = next((getattr(module, name) for name in EPSILONS if isinstance(getattr(module, name, None), float)), None)
    if list(parameters) != ["weight"] or eps is None or any(True for _ in module.children()):
        return None
    weight = parameters["weight"]
    takes_one = len(inspect.signature(module.forward).parameters) == 1
    hooked = module._forward_hooks or module._forward_pre_hooks
    if weight.ndim != 1 or weight.requires_grad or weight.is_meta or weight.dtype not in TOLERANCE:
        return None
    if not takes_one or hooked:
        return None
    return next(((eps, offset) for offset in (0.0, 1.0) if _agrees(module, weight, eps, offset)), None)


def _agrees(module: nn.Module, weight: Tensor, eps: float, offset: float) -> bool:
    """Whether output and gradient for a made-up input are the module's own, but for rounding."""
    made_up = torch.arange(3 * len(weight), dtype=torch.float64, device=weight.device).mul(0.7).add(0.3).sin() + 0.2
    results = []
    with torch.autocast(weight.device.type, enabled=False), torch.enable_grad():
        for function in (module, lambda x: _RMSNorm.apply(x, weight, eps, offset, False)[0]):
            x = made_up.view(1, 3, -1).to(weight.dtype).requires_grad_()
            y = function(x)
            if not isinstance(y, Tensor) or y.shape != x.shape or y.dtype != x.dtype or not y.requires_grad:
                return False
            results.append((y.detach(), *torch.autograd.grad((y * made_up.cos().view(x.shape)).sum(), x)))
    return all(differs_by_rounding(ours, own, TOLERANCE) for own, ours in zip(*results, strict=True))
