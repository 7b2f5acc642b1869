r"""Stacked linear layers, one of each for every expert, over rows that are sorted by expert.

With e the expert of row s and A^e already scaled by s:

    forward    l_s = x_s A^e^T,         y_s  = l_s B^e^T + x_s W^e^T + b^e
    backward   h_s = g_s B^e,           dx_s = h_s A^e + g_s W^e
               dB^e = sum_s g_s l_s^T,  dA^e = s sum_s h_s x_s^T

Low precision is as in `lora_linear`: factors are cast to the dtype of x, gradients of factors are float32 or better,
and what an adapter adds is not lost when it is added to a rounded product.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from wishbone.ops.expert_mlp import grouped
from wishbone.ops.expert_mlp.quantized import QuantizedStack
from wishbone.ops.expert_mlp.routing import Routing

RANK_MULTIPLE = 8
"""Grouped products on CUDA take rows of a multiple of 16 bytes."""


@dataclass(frozen=True)
class StackedAdapter:
    """A low-rank addition s B^e A^e to the matrix of each expert.

    Attributes:
        a: [experts, r, K], usually float32.
        b: [experts, N, r], usually float32.
        scale: s.
    """

    a: Tensor
    b: Tensor
    scale: float = 1.0


@dataclass(frozen=True)
class StackedLinear:
    """A linear layer of each expert.

    Attributes:
        weight: frozen W [experts, N, K], of any strides; perhaps a `QuantizedStack`.
        bias: frozen b [experts, N], or None.
        adapter: or None.
        transposed: whether `weight` is [experts, K, N] instead.
    """

    weight: Tensor
    bias: Tensor | None = None
    adapter: StackedAdapter | None = None
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """The sizes (experts, N, K)."""
        experts, n, k = self.weight.shape
        return (experts, k, n) if self.transposed else (experts, n, k)

    def matrices(self, dtype: torch.dtype) -> Tensor:
        """Return W [experts, N, K] in `dtype`; codes on CUDA are turned into scratch memory, until the next call."""
        weight = self.weight.detach()
        dense = weight.matrices(dtype) if isinstance(weight, QuantizedStack) else weight.to(dtype)
        return dense.transpose(1, 2) if self.transposed else dense


class StackedPass:
    """The arithmetic of a `StackedLinear` for one pass, on plain tensors without autograd.

    Args:
        linear: the layer.
        dtype: of the arithmetic.
        routing: of the rows.

    Attributes:
        a, b: scaled A [experts, r, K] and B [experts, N, r] in `dtype`, r padded with zeros; None without adapter.
    """

    def __init__(self, linear: StackedLinear, dtype: torch.dtype, routing: Routing) -> None:
        self._linear, self._dtype = linear, dtype
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        self.routing = routing
        self.rank = self.scale = 0.0
        self.a: Tensor | None = None
        self.b: Tensor | None = None
        if linear.adapter is not None:
            a, b = linear.adapter.a.detach(), linear.adapter.b.detach()
            self.rank, self.scale = a.shape[1], linear.adapter.scale
            missing = -a.shape[1] % RANK_MULTIPLE if dtype == torch.bfloat16 else 0
            self.a = F.pad((a * self.scale).to(dtype), (0, 0, 0, missing)).contiguous()
            self.b = F.pad(b.to(dtype), (0, missing)).contiguous()

    def matrices(self) -> Tensor:
        """Return W as `StackedLinear.matrices` does."""
        return self._linear.matrices(self._dtype)

    def forward(self, x: Tensor, matrices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return y [S, N], and l [S, r], None without adapter.

        Args:
            x: [S, K].
            matrices: what `matrices` returns, which several passes of a layer may share.
        """
        low = None if self.a is None else grouped.product(x, self.a.transpose(1, 2), self.routing)
        b = None if self.b is None else self.b.transpose(1, 2)
        return grouped.product(x, matrices.transpose(1, 2), self.routing, self.bias, low, b), low

    def with_adapter(self, adapter: StackedAdapter | None, routing: Routing) -> StackedPass:
        """Return the same layer with another adapter, over other rows."""
        return StackedPass(replace(self._linear, adapter=adapter), self._dtype, routing)

    def down(self, grad: Tensor) -> Tensor | None:
        """Return h [S, r], None without adapter."""
        return None if self.b is None else grouped.product(grad, self.b, self.routing)

    def input_gradient(self, grad: Tensor, h: Tensor | None) -> Tensor:
        """Return dx [S, K]."""
        return grouped.product(grad, self.matrices(), self.routing, None, h, self.a)

    def a_gradient(self, h: Tensor | None, x: Tensor) -> Tensor | None:
        """Return dA [experts, r, K], float32 or better; None without adapter."""
        if h is None:
            return None
        return grouped.outer(h, x, self.routing)[:, : int(self.rank)] * self.scale

    def b_gradient(self, grad: Tensor, low: Tensor | None) -> Tensor | None:
        """Return dB [experts, N, r], float32 or better; None without l."""
        return None if low is None else grouped.outer(grad, low, self.routing)[:, :, : int(self.rank)]
