"""Norms of any transformers model in one pass each, while a step runs.

Written in PyTorch, an RMSNorm with frozen weight makes five passes over memory and keeps float32 copies of its input
for the backward pass. Here it keeps its input and one value a row, and where FP8 layers read its output, it writes that
output in 8 bits, too (`quantized_input.py`).

What is a norm is found out by trying: a module with one weight or none and an epsilon whose output and whose gradient
are those of an RMSNorm with weight w or 1 + w, or of a layer norm written out (Cohere), for which PyTorch has a kernel.

transformers marks norms for kernels from the Hub (`use_kernel_forward_from_hub`). That registered point does not serve
here: without the package `kernels` it does nothing, and with it `kernelize` replaces the forward of norms for good.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wishbone.fused.coverage import LAYER_NORM, NO_GPU, Site
from wishbone.fused.gated_norm import gated_norm_forward, gated_norm_of
from wishbone.fused.gathered import GatheredUnits
from wishbone.fused.instance_attributes import REPLACED, InstanceAttributes, slot_of
from wishbone.fused.lockstep import Lockstep, PendingSum
from wishbone.fused.parts import is_norm
from wishbone.fused.quantized_input import QuantizedInput
from wishbone.fused.rounding import differs_by_rounding
from wishbone.ops.carried_difference import rms_norm_in_lockstep
from wishbone.ops.fp8_quantize import (
    LockstepRows,
    QuantizedRows,
    RowForm,
    rms_norm,
    rms_norm_backward,
    rms_norm_quantize,
    rms_norm_quantize_both,
    sum_rms_norm_quantize_both,
)

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Relative difference that rounding explains; norms of transformers round to float32 inside, whatever the dtype."""
LARGEST_EPSILON, SMALLEST = 0.1, 2.0**-10
USUAL_EPSILONS = (1e-5, 1e-6)
"""What is tried where a norm has its epsilon written into its forward."""


@dataclass(frozen=True)
class _Formula:
    """What a norm computes: x / sqrt(mean x^2 + eps) * (offset + weight), without the factor where it has no weight.

    A layer norm subtracts the mean of x before.
    """

    eps: float
    offset: float
    has_weight: bool
    is_layer_norm: bool


class FusedNorms:
    """Finds norms in a model and switches them on and off.

    Args:
        model: a transformers model. Nothing of it is changed.
        everywhere: also on devices other than CUDA, where it gains little.
        quantized: where norms leave their output for 8-bit layers; None for norms that no fused layer reads.

    Attributes:
        norms: those that run fused, by name.
    """

    def __init__(self, model: nn.Module, *, everywhere: bool = False, quantized: QuantizedInput | None = None) -> None:
        self._quantized = quantized or QuantizedInput()
        self._attributes = InstanceAttributes()
        self._left: dict[str, str] = {}
        self.norms: list[str] = []
        gathered = GatheredUnits(model)
        for name, module in model.named_modules():
            beside = next(module.parameters(), None) if not is_norm(module) else _first_parameter(module, model)
            if beside is None:
                continue
            found: _Formula | str = NO_GPU
            if everywhere or beside.is_cuda:
                with gathered.around(module):
                    whole = next(module.parameters(), beside)
                    found = _formula_of(module, whole)
            slot = slot_of(module)
            if isinstance(found, _Formula) and slot is not None:
                self.norms.append(name)
                forward = _norm_forward(module, getattr(module, slot), found, self._quantized)
                self._attributes.add(module, slot, forward)
            elif found is not NO_GPU and slot is not None and (gated := gated_norm_of(module)) is not None:
                self.norms.append(name)
                self._attributes.add(module, slot, gated_norm_forward(module, getattr(module, slot), gated))
            elif is_norm(module):
                self._left[name] = REPLACED if isinstance(found, _Formula) else found

    def sites(self) -> Iterator[Site]:
        """Yield every norm, fused or not."""
        yield from (Site("norm", name) for name in self.norms)
        yield from (Site("norm", name, reason) for name, reason in self._left.items())

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
    """RMSNorm whose weight is frozen, and its rows in 8 bits if wanted; keeps x and one value a row.

    With a reference, rows are those of both, and its norm is returned as well; with the difference, too, what the
    results differ by.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        eps: float,
        offset: float,
        form: RowForm | None,
        reference: Tensor | None = None,
        difference: Tensor | None = None,
    ) -> tuple[Tensor, QuantizedRows | LockstepRows | None, Tensor | None, Tensor | None]:
        rows, other, moved = x.reshape(-1, x.shape[-1]), None, None
        quantized: QuantizedRows | LockstepRows | None = None
        if reference is not None and difference is not None:
            reference, difference = reference.reshape(rows.shape), difference.reshape(rows.shape)
            both, quantized, reciprocal_rms = rms_norm_in_lockstep(
                reference, difference, weight, eps, offset=offset, form=form
            )
            normed, other, moved = both.policy, *(one.view(x.shape) for one in both[1:])
            ctx.mark_non_differentiable(other, moved)
        elif reference is not None and form is not None:
            normed, other, quantized, reciprocal_rms = rms_norm_quantize_both(
                rows, reference.reshape(rows.shape), weight, eps, offset=offset, form=form
            )
            other = other.view(x.shape)
            ctx.mark_non_differentiable(other)
        elif form is not None:
            normed, quantized, reciprocal_rms = rms_norm_quantize(rows, weight, eps, offset=offset, form=form)
        else:
            normed, reciprocal_rms = rms_norm(rows, weight, eps, offset=offset)
        ctx.save_for_backward(x, weight, reciprocal_rms)
        ctx.offset = offset
        return normed.view(x.shape), quantized, other, moved

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        x, weight, reciprocal_rms = ctx.saved_tensors
        grad_rows, rows = grad.reshape(-1, x.shape[-1]), x.reshape(-1, x.shape[-1])
        dx = rms_norm_backward(grad_rows, rows, weight, reciprocal_rms, offset=ctx.offset)
        return dx.view(x.shape), *(None,) * 6


class _SumNorm(torch.autograd.Function):
    """The sum that a block of a layer ends with and the norm after it, of policy and reference, with rows in 8 bits.

    The gradient of the sum, from what it is added to next and from its norm, is added in the norm's kernel.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        added: Tensor,
        reference: Tensor,
        reference_added: Tensor,
        weight: Tensor,
        eps: float,
        offset: float,
        form: RowForm,
    ) -> tuple[Tensor, Tensor, LockstepRows, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        x_rows, added_rows, other_rows, others_added = (
            addend.reshape(-1, x.shape[-1]) for addend in (x, added, reference, reference_added)
        )
        total, reference_total, normed, reference_normed, rows, reciprocal_rms = sum_rms_norm_quantize_both(
            x_rows, added_rows, other_rows, others_added, weight, eps, offset=offset, form=form
        )
        others = reference_total.view(x.shape), reference_normed.view(x.shape)
        ctx.mark_non_differentiable(*others)
        total = total.view(x.shape)
        ctx.save_for_backward(total, weight, reciprocal_rms)
        ctx.offset = offset
        return total, normed.view(x.shape), rows, *others

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, beside: Tensor | None, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        x, weight, reciprocal_rms = ctx.saved_tensors
        dx = beside
        if grad is not None:
            flat, other = grad.reshape(-1, x.shape[-1]), None if beside is None else beside.reshape(-1, x.shape[-1])
            rows = x.reshape(-1, x.shape[-1])
            dx = rms_norm_backward(flat, rows, weight, reciprocal_rms, offset=ctx.offset, beside=other).view(x.shape)
        return dx, dx, *(None,) * 6


def _norm_forward(
    module: nn.Module, own_forward: Callable[..., Any], formula: _Formula, quantized: QuantizedInput
) -> Callable[..., Any]:
    parameters: dict[str, Any] = vars(module)["_parameters"]
    eps, offset, ones = formula.eps, formula.offset, _Ones()
    has_weight, is_layer_norm = formula.has_weight, formula.is_layer_norm

    def forward(x: Tensor) -> Any:
        weight = parameters["weight"] if has_weight else ones.like_last(x)
        if weight.requires_grad or x.device != weight.device or x.dtype != weight.dtype:
            return own_forward(x)
        if is_layer_norm:
            return _layer_norm(x, weight, eps)
        asked = quantized.begin(module)
        if isinstance(x, Lockstep):
            normed, rows = _in_lockstep(x, weight, eps, offset, asked)
        else:
            normed, rows, *_ = _RMSNorm.apply(x, weight, eps, offset, asked)
        quantized.leave(module, normed, rows)
        return normed

    return forward


def _in_lockstep(
    x: Lockstep, weight: Tensor, eps: float, offset: float, form: RowForm | None
) -> tuple[Lockstep, LockstepRows | None]:
    """Return the RMSNorm of policy and reference, and their rows in 8 bits if wanted."""
    difference = x.difference
    if isinstance(x, PendingSum) and form is not None and (addends := x.addends()) is not None:
        total, policy, rows, *others = _SumNorm.apply(*addends, weight, eps, offset, form)
        x.settle(total, others[0])
        return Lockstep(policy, others[1], x.adapters), rows
    if form is not None or difference is not None:
        policy, rows, reference, moved = _RMSNorm.apply(x.policy, weight, eps, offset, form, x.reference, difference)
        return Lockstep(policy, reference, x.adapters, moved), rows
    policy, *_ = _RMSNorm.apply(x.policy, weight, eps, offset, None)
    with torch.no_grad():
        reference, *_ = _RMSNorm.apply(x.reference, weight, eps, offset, None)
    return Lockstep(policy, reference, x.adapters), None


def _layer_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """PyTorch's own kernel, by the name that autocast leaves in the dtype of x."""
    normed: Tensor = torch.native_layer_norm(x, [x.shape[-1]], weight, None, eps)[0]
    return normed


class _Ones:
    """The weight of a norm that has none."""

    def __init__(self) -> None:
        self._ones: dict[tuple[Any, ...], Tensor] = {}

    def like_last(self, x: Tensor) -> Tensor:
        """Return ones for the last dimension of x."""
        kind = x.shape[-1], x.dtype, x.device
        if kind not in self._ones:
            self._ones[kind] = torch.ones(x.shape[-1], dtype=x.dtype, device=x.device)
        return self._ones[kind]


def _first_parameter(module: nn.Module, model: nn.Module) -> Tensor | None:
    """A parameter of a norm; for one without, one of its model, which lies on the same device."""
    return next(module.parameters(), next(model.parameters(), None))


def _formula_of(module: nn.Module, beside: Tensor) -> _Formula | str:
    """Return what a module computes if it is an RMSNorm with frozen weight or none; else why it is not fused.

    Args:
        module: any module.
        beside: its weight, or a parameter with the device and dtype that its input will have.
    """
    kind = type(module).__name__
    if isinstance(module, nn.LayerNorm):
        return LAYER_NORM
    if any(True for _ in module.children()):
        return f"{kind} is not a norm of a known kind"
    parameters = dict(module.named_parameters())
    if list(parameters) != ["weight"] and (parameters or not is_norm(module)):
        return f"{kind} is not a norm of a known kind"
    epsilons = [value for value in vars(module).values() if isinstance(value, float) and 0 <= value < LARGEST_EPSILON]
    epsilons = epsilons or [*USUAL_EPSILONS]
    if beside.requires_grad and parameters:
        return "their weights are trained"
    if beside.is_meta or beside.dtype not in TOLERANCE or (parameters and beside.ndim != 1):
        return f"weights of {kind} are in a form that cannot be read"
    if module._forward_hooks or module._forward_pre_hooks:
        return "hooks look at their inputs and outputs"
    if len(inspect.signature(module.forward).parameters) != 1:
        return f"{kind} takes more than one input"
    size = len(beside) if parameters else getattr(module, "normalized_shape", (32,))[-1]
    weight = parameters.get("weight", torch.ones(size, dtype=beside.dtype, device=beside.device))
    small = max(SMALLEST, max(epsilons) ** 0.5)
    kinds = [(0.0, False), (1.0, False), (0.0, True)] if parameters else [(0.0, False), (0.0, True)]
    for eps, (offset, is_layer_norm) in product(epsilons, kinds):
        formula = _Formula(eps, offset, bool(parameters), is_layer_norm)
        if all(_agrees(module, weight, formula, size) for size in (1.0, small)):
            return formula
    return f"{kind} is not a norm of a known kind"


def _agrees(module: nn.Module, weight: Tensor, formula: _Formula, size: float) -> bool:
    """Whether output and gradient for a synthetic input are the module's own, but for rounding.

    Args:
        module: what may be a norm.
        weight: its weight, or ones.
        formula: what it may compute.
        size: of the input's elements, about; epsilon counts where it is small.
    """
    made_up = torch.arange(3 * len(weight), dtype=torch.float64, device=weight.device).mul(0.7).add(0.3).sin() + 0.2
    upstream = made_up.cos().view(1, 3, -1)
    made_up = made_up.view(1, 3, -1) * size

    def ours(x: Tensor) -> Tensor:
        if formula.is_layer_norm:
            return _layer_norm(x, weight, formula.eps)
        normed: Tensor = _RMSNorm.apply(x, weight, formula.eps, formula.offset, None)[0]
        return normed

    results = []
    with torch.autocast(weight.device.type, enabled=False), torch.enable_grad():
        for function in (module, ours):
            x = made_up.to(weight.dtype).requires_grad_()
            y = function(x)
            if not isinstance(y, Tensor) or y.shape != x.shape or y.dtype != x.dtype or not y.requires_grad:
                return False
            results.append((y.detach(), *torch.autograd.grad((y * upstream).sum(), x)))
    return all(differs_by_rounding(got, own, TOLERANCE) for own, got in zip(*results, strict=True))
