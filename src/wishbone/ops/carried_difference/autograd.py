"""The sum of both halves as a function of autograd, whose graph is the policy's alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wishbone.ops import carried_difference as ops
from wishbone.ops.carried_difference.rows import Halves


def difference_of(policy: Tensor, reference: Tensor) -> Tensor:
    """Return policy - reference, rounded once, where no difference is carried."""
    return policy.detach() - reference


def sum_with_graph(halves: Halves, other: Halves) -> Halves:
    """Return `sum_of_halves`, with the gradients of both policies."""
    return Halves(*_Sum.apply(halves.policy, other.policy, *halves[1:], *other[1:]))


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        policy: Tensor,
        other_policy: Tensor,
        reference: Tensor,
        difference: Tensor,
        other: Tensor,
        other_difference: Tensor,
    ) -> tuple[Tensor, ...]:
        total = ops.sum_of_halves(reference, difference, other, other_difference)
        ctx.mark_non_differentiable(*total[1:])
        return tuple(total)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        return grad, grad, None, None, None, None
