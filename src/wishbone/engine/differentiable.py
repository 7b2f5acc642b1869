"""A batch's loss as a tensor to differentiate, for code that calls `compute_loss` instead of `train()`.

A step computes gradients row by row and returns a scalar without a graph (`step.py`). Here it runs at once, and the
tensor returned carries the gradients: its derivative by the parameters is theirs times the derivative by the loss,

    d f(L) / d theta = f'(L) dL / d theta.

So memory is that of one row, and recomputed layers run in the context they ran in before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wishbone.engine.execution import Execution
from wishbone.engine.step import Groups, PreferenceStep
from wishbone.preference.metrics import PairMetrics


def differentiable_loss(step: PreferenceStep, groups: Groups, metrics: PairMetrics, execution: Execution) -> Tensor:
    """Return the loss of a step, a scalar with a graph; existing gradients of the parameters do not change.

    Args:
        step: what computes it; its model's parameters are differentiated by.
        groups: the pairs.
        metrics: receives every pair once.
        execution: how rows are computed.
    """
    trained = [parameter for parameter in step.policy.model.parameters() if parameter.requires_grad]
    before = [parameter.grad for parameter in trained]
    try:
        for parameter in trained:
            parameter.grad = None
        loss = step.backward(groups, metrics, execution)
        gradients = [parameter.grad for parameter in trained]
    finally:
        for parameter, gradient in zip(trained, before, strict=True):
            parameter.grad = gradient
    return _WithGradients.apply(loss, gradients, *trained)  # type: ignore[no-any-return]


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor | None], *trained: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if g is None else g * factor.to(g.device) for g in ctx.gradients)
