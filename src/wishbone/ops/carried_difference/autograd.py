"""The sum of policy and reference as a function of autograd, whose graph is the policy's alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wishbone.ops import carried_difference as ops
from wishbone.ops.carried_difference.rows import PolicyAndReference


def difference_of(policy: Tensor, reference: Tensor) -> Tensor:
    """Return policy - reference, rounded once, where no difference is carried."""
    return policy.detach() - reference


def sum_with_graph(one: PolicyAndReference, other: PolicyAndReference) -> PolicyAndReference:
    """Return `sum_in_lockstep`, with the gradients of both policies."""
    return PolicyAndReference(*_Sum.apply(one.policy, other.policy, *one[1:], *other[1:]))


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
        total = ops.sum_in_lockstep(reference, difference, other, other_difference)
        ctx.mark_non_differentiable(*total[1:])
        return tuple(total)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        return grad, grad, None, None, None, None
