"""The auxiliary loss of a mixture of experts, which keeps its router from sending all tokens to a few experts.

It is a term of a group's loss beside the mean of its pairs' losses, as in TRL (`router_aux_loss_coef`):

    L_g = mean of loss_i over the pairs of g  +  c E sum_i f_i P_i

with f and P over all tokens of both sequences of each pair: a prompt counts twice (`ops/router_sums/reference.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LoadBalancing:
    """The auxiliary loss of a model.

    Attributes:
        coefficient: c, its weight in the loss.
        top_k: experts that a router chooses for a token.
    """

    coefficient: float
    top_k: int


def load_balancing_loss(chosen: Tensor, probable: Tensor, tokens: Tensor) -> Tensor:
    """Return E sum_i f_i P_i of each group, [groups], without the coefficient.

    Linear in `probable`: what a row adds to it gives what the row adds to the loss.

    Args:
        chosen: how many tokens each expert was chosen for, over all layers, [groups, experts].
        probable: sums of the router's probabilities, [groups, experts].
        tokens: tokens of each group times layers, [groups].
    """
    return chosen.shape[1] * (chosen * probable).sum(1) / tokens.square()
