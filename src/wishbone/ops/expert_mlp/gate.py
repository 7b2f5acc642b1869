"""What lies between the two matrices of an expert, forward and backward: a gated product, or any function of a model.

The backward pass needs h = gate(u) twice, for the shares of the router and for the adapter of the second matrix, and
computes it again from u, which is overwritten with its gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from wishbone.ops.gated_mlp import Activation
from wishbone.ops.gated_mlp import elementwise as plain


class Gate(Protocol):
    """A function of rows u [S, U] to rows h [S, I], and its derivative."""

    def forward(self, u: Tensor) -> Tensor:
        """Return h, contiguous."""
        ...

    def backward_(self, h_gradient: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return h and du; both arguments may be overwritten."""
        ...


class GatedProduct:
    """h = a(g) v, where u holds g and v side by side.

    Args:
        activation: a.
    """

    def __init__(self, activation: Activation) -> None:
        self.activation = activation

    def forward(self, u: Tensor) -> Tensor:
        """Return h."""
        product: Tensor = _elementwise(u).gated_product(*u.chunk(2, dim=1), self.activation)
        return product

    def backward_(self, h_gradient: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return h and du in the memory of the arguments."""
        _elementwise(u).gated_backward_(h_gradient, *u.chunk(2, dim=1), self.activation)
        return h_gradient, u


class ClampedGate:
    r"""gpt-oss's gate, where u holds g and v in turn (gpt-oss model card, arXiv:2508.10925; its reference code).

        h = (clip(v, -c, c) + 1) m s(a m),      m = min(g, c),      s = sigmoid

    Args:
        slope: a.
        limit: c.
    """

    def __init__(self, slope: float, limit: float) -> None:
        self.slope, self.limit = slope, limit

    def forward(self, u: Tensor) -> Tensor:
        """Return h."""
        if _has_kernels(u):
            from wishbone.ops.expert_mlp.triton import clamped_gate

            return clamped_gate(u, self.slope, self.limit)
        gate, value = self._parts(u)
        return (gate * torch.sigmoid(self.slope * gate) * (value.clamp(-self.limit, self.limit) + 1)).to(u.dtype)

    def backward_(self, h_gradient: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return h and du in the memory of the arguments."""
        if _has_kernels(u):
            from wishbone.ops.expert_mlp.triton import clamped_gate_backward_

            return clamped_gate_backward_(h_gradient, u, self.slope, self.limit)
        gate, value = self._parts(u)
        open_, inside = u[:, ::2] <= self.limit, value.abs() <= self.limit
        shifted = value.clamp(-self.limit, self.limit) + 1
        share, dh = torch.sigmoid(self.slope * gate), h_gradient.to(gate.dtype)
        u[:, ::2] = (dh * shifted * share * (1 + self.slope * gate * (1 - share)) * open_).to(u.dtype)
        u[:, 1::2] = (dh * gate * share * inside).to(u.dtype)
        return h_gradient.copy_(gate * share * shifted), u

    def _parts(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return m and v, float32 or better."""
        precise = torch.promote_types(u.dtype, torch.float32)
        return u[:, ::2].to(precise).clamp(max=self.limit), u[:, 1::2].to(precise)


class GateOf:
    """Any function that autograd knows, without parameters that are trained.

    Args:
        function: of u.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def forward(self, u: Tensor) -> Tensor:
        """Return h."""
        with torch.no_grad():
            return self.function(u).contiguous()

    def backward_(self, h_gradient: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return h and du."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            h = self.function(u)
        (gradient,) = torch.autograd.grad(h, u, h_gradient)
        return h.detach().contiguous(), gradient


def _has_kernels(tensor: Tensor) -> bool:
    return tensor.is_cuda and tensor.dtype != torch.float64


def _elementwise(tensor: Tensor) -> Any:
    """Return the module with the elementwise part: Triton's on CUDA, except for float64."""
    if _has_kernels(tensor):
        from wishbone.ops.gated_mlp import triton

        return triton
    return plain
