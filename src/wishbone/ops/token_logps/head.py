r"""Log-probabilities as one function of autograd, for both fast backends, and for frozen and trained heads.

With a frozen head the only gradient is that of the hidden states, and it is a fixed direction times the coefficient
that the loss sends back:

    d log p_t / d h = s W^T [ (e_t - p) * cap'(z) ]          (the unit gradient)

It is taken in the forward pass, while the logits of a chunk are at hand, and multiplied by the coefficient in the
backward pass: two matrix products a chunk instead of the three of recomputation. A head that is trained needs the
coefficient for its own gradient, so its chunks are computed again in the backward pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wishbone.ops.token_logps.scores import ReferenceStates, TokenScores


@dataclass(frozen=True)
class Head(ABC):
    """An output head z = cap(s (W h + b)) as a backend computes it, some tokens at a time.

    Attributes:
        scale: s, factor on the logits.
        softcap: bound of the tanh soft-capping of the logits, or None.
        chunk: tokens at a time.
    """

    scale: float
    softcap: float | None
    chunk: int

    @abstractmethod
    def score(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        *,
        statistics: bool,
        unit: Tensor | None,
        keep: bool,
        reference: ReferenceStates | None,
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the fields of `TokenScores`, without `statistics` its `logps` alone, and what to keep.

        Args:
            reference: the reference's states, of which the policy's logits are formed; their `logps` are set.
            unit: set to the unit gradient [tokens, hidden_size], where it is given.
            keep: return the tensors that `logit_gradients` takes as `kept`; otherwise there are none.
        """

    @abstractmethod
    def logit_gradients(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        coefficient: Tensor,
        kept: tuple[Tensor, ...],
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield the tokens of each chunk and coefficient * d log p / d (W h) of these, [tokens, vocabulary]."""

    @abstractmethod
    def scaled(self, unit: Tensor, coefficient: Tensor) -> Tensor:
        """Return the unit gradient [tokens, hidden_size] times the coefficient of each token [tokens]."""

    @abstractmethod
    def add_product(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        """Add left @ right to `total`, which is float32 or better."""


def score_by_chunks(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    head: Head,
    *,
    statistics: bool,
    reference: ReferenceStates | None,
) -> TokenScores:
    """Return the scores of `targets`; tensors and `statistics` as `token_logps`.

    Raises:
        NotImplementedError: the head is trained, and the reference's states are given.
    """
    trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    recompute = trained and torch.is_grad_enabled()
    if recompute and reference is not None:
        raise NotImplementedError("a head that is trained forms logits of its own hidden states: leave out `reference`")
    scores = _Scores.apply(hidden, weight, bias, targets, head, recompute, statistics, reference)
    return TokenScores(*scores) if statistics else TokenScores.logps_alone(scores[0])


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head: Head,
        recompute: bool,
        statistics: bool,
        reference: ReferenceStates | None,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.head, ctx.recompute = head, recompute
        unit = _empty_like(hidden) if ctx.needs_input_grad[0] and not recompute else None
        scores, kept = head.score(
            hidden, weight, bias, targets, statistics=statistics, unit=unit, keep=recompute, reference=reference
        )
        if recompute:
            ctx.save_for_backward(hidden, weight, bias, targets, *kept)
        elif unit is not None:
            ctx.save_for_backward(unit)
        ctx.mark_non_differentiable(*scores[1:])
        return scores

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        coefficient, head = grads[0], ctx.head
        if coefficient is None:
            return (None,) * 8
        if not ctx.recompute:
            (unit,) = ctx.saved_tensors
            return head.scaled(unit, coefficient), *(None,) * 7
        hidden, weight, bias, targets, *kept = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        precise = coefficient.dtype
        hidden_grad = _empty_like(hidden) if wants_hidden else None
        weight_grad = torch.zeros_like(weight, dtype=precise) if wants_weight else None
        bias_grad = torch.zeros_like(bias, dtype=precise) if wants_bias else None
        for tokens, gradient in head.logit_gradients(hidden, weight, bias, targets, coefficient, tuple(kept)):
            if bias_grad is not None:
                bias_grad += gradient.sum(0, dtype=precise)
            gradient = gradient.to(weight.dtype)
            if hidden_grad is not None:
                torch.mm(gradient, weight, out=hidden_grad[tokens])
            if weight_grad is not None:
                head.add_product(weight_grad, gradient.t(), hidden[tokens])
        return (
            hidden_grad,
            None if weight_grad is None else weight_grad.to(weight.dtype),
            None if bias_grad is None else bias_grad.to(bias.dtype),
            *(None,) * 5,
        )


def _empty_like(hidden: Tensor) -> Tensor:
    """Return contiguous memory for the gradient of hidden states."""
    return torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device)
