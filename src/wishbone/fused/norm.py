"""RMSNorm and rotary embeddings of any transformers model in one pass each, for as long as a step runs.

Written in PyTorch, an RMSNorm with frozen weight makes five passes over memory and keeps float32 copies of its input
for the backward pass; a rotary embedding makes six. Here a norm keeps its input and one number a row, and where FP8
layers read its output, it writes that in e4m3, too (`quantized_input.py`).

What is a norm is found out by trying: a module with one weight and an epsilon whose output and whose gradient are those
of an RMSNorm with weight w or 1 + w. Rotary embeddings are functions, which attention layers look up by name in their
module. A layer gets a copy of its own `forward` in which that name means ours; modules of transformers and other models
stay as they are. The first call compares ours with the family's own, and keeps to that where they differ by more than
rounding.

`apply_liger_kernel_to_*` of liger-kernel is not used: it replaces classes and functions in transformers' modules, for
every model of the process and for good, and its norms write gradients over tensors that may be in use.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wishbone.fused.quantized_input import QuantizedInput
from wishbone.ops.fp8_quantize import QuantizedRows, rms_norm, rms_norm_backward, rms_norm_quantize
from wishbone.ops.rotary import rotary

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Relative difference that rounding explains; norms of transformers round to float32 inside, whatever the dtype."""
EPSILONS = ("variance_epsilon", "eps")
ROTARY = "apply_rotary_pos_emb"


class FusedNorms:
    """Finds RMSNorms and rotary embeddings in a model and switches them on and off.

    Args:
        model: a transformers model. Nothing of it is changed.
        everywhere: also on devices other than CUDA, where it gains little.
        quantized: where norms leave their output for FP8 layers; None for norms that no fused layer reads.

    Attributes:
        norms: RMSNorms, by name.
        attentions: layers with a rotary embedding, by name.
    """

    def __init__(self, model: nn.Module, *, everywhere: bool = False, quantized: QuantizedInput | None = None) -> None:
        self._quantized = quantized or QuantizedInput()
        self._norms: list[tuple[str, nn.Module, float, float]] = []
        self._attentions: list[tuple[str, nn.Module]] = []
        self._rotaries: dict[Any, _Rotary] = {}
        self._switched: list[nn.Module] = []
        self._depth = 0
        for name, module in model.named_modules():
            on_device = any(p.is_cuda for p in module.parameters()) or everywhere
            if not on_device or "forward" in vars(module):
                continue
            found = _rms_norm_of(module)
            if found is not None:
                self._norms.append((name, module, *found))
            elif _calls_rotary(module):
                self._attentions.append((name, module))

    @property
    def norms(self) -> list[str]:  # noqa: D102
        return [name for name, *_ in self._norms]

    @property
    def attentions(self) -> list[str]:  # noqa: D102
        return [name for name, _ in self._attentions]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Context of forward passes and of the backward passes that recompute them; it may be entered again inside."""
        if self._depth == 0:
            self._switch_on()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._quantized.clear()
                for module in self._switched:
                    vars(module).pop("forward", None)
                self._switched.clear()

    def _switch_on(self) -> None:
        for _, module, eps, offset in self._norms:
            self._switch(module, _norm_forward(module, eps, offset, self._quantized))
        forwards: dict[Any, FunctionType] = {}
        for _, module in self._attentions:
            own = type(module).forward
            if own not in forwards:
                forwards[own] = self._with_our_rotary(own)
            self._switch(module, MethodType(forwards[own], module))

    def _switch(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        if "forward" not in vars(module):
            vars(module)["forward"] = forward
            self._switched.append(module)

    def _with_our_rotary(self, own: Any) -> FunctionType:
        """Return a copy of a layer's forward in which the rotary embedding is ours."""
        function = own.__globals__[ROTARY]
        ours = self._rotaries.setdefault(function, _Rotary(function))
        copy = FunctionType(
            own.__code__, {**own.__globals__, ROTARY: ours}, own.__name__, own.__defaults__, own.__closure__
        )
        copy.__kwdefaults__ = own.__kwdefaults__
        return copy


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


def _norm_forward(module: nn.Module, eps: float, offset: float, quantized: QuantizedInput) -> Callable[..., Any]:
    own_forward: Callable[..., Any] = module.forward
    weight: Any = module.weight

    def forward(x: Tensor) -> Any:
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
    return all(_close(ours, own) for own, ours in zip(*results, strict=True))


def _close(value: Tensor, own: Tensor) -> bool:
    if value.dtype != own.dtype:
        return False
    return bool((value.double() - own.double()).norm() <= TOLERANCE[own.dtype] * own.double().norm())


def _calls_rotary(module: nn.Module) -> bool:
    """Whether a module's forward is a plain function that turns queries and keys by the usual name."""
    forward = type(module).forward
    return (
        isinstance(forward, FunctionType)
        and not hasattr(forward, "__wrapped__")
        and ROTARY in forward.__code__.co_names
        and callable(forward.__globals__.get(ROTARY))
    )


class _Rotary:
    """Stands for one family's rotary embedding: ours once it was seen to agree, else the family's own."""

    def __init__(self, own: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self._own = own
        self._agrees: dict[tuple[Any, ...], bool] = {}

    def __call__(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or not _has_usual_shapes(q, k, cos, sin):
            return self._own(q, k, cos, sin, *args, **kwargs)
        kind = (q.dtype, cos.dtype, q.shape[1], k.shape[1], q.shape[3], cos.shape[2])
        if kind not in self._agrees:
            self._agrees[kind] = self._compare(q, k, cos, sin)
        return rotary(q, k, cos, sin) if self._agrees[kind] else self._own(q, k, cos, sin)

    @torch.no_grad()
    def _compare(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> bool:
        """Whether ours is the family's own on the last tokens of this input, but for rounding."""
        q, k, cos, sin = q[:, :, -64:], k[:, :, -64:], cos[:, -64:], sin[:, -64:]
        own = self._own(q, k, cos, sin)
        return all(_close(a, b) for a, b in zip(rotary(q, k, cos, sin), own, strict=True))


def _has_usual_shapes(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> bool:
    return (
        q.ndim == k.ndim == 4
        and cos.ndim == 3
        and cos.shape == sin.shape
        and cos.shape[0] in (1, q.shape[0])
        and cos.shape[1] == q.shape[2] == k.shape[2]
        and q.shape[3] == k.shape[3] >= cos.shape[2]
        and cos.shape[2] % 2 == 0
        and q.dtype == k.dtype
        and q.dtype in TOLERANCE
    )
