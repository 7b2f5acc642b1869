r"""Load balancing of a mixture of experts: the definition, for one group of sequences.

For token t of layer l, p_i(l, t) is the probability that the router gives expert i (a softmax of its logits over all
experts), and k experts are chosen. Over all layers and all tokens of a group that are not padding,

    f_i = mean of [i is chosen]        a share, without gradient
    P_i = mean of p_i                  with gradient
    loss = E sum_i f_i P_i             E experts; k where all are chosen alike and get the same probability

(Switch Transformers, arXiv 2101.03961, eq. 4 to 6, for k choices; transformers' `load_balancing_loss_func` with an
attention mask.) A token that stands for several, such as one of a prompt that two sequences share, counts that often.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def load_balancing_loss_reference(router_logits: Sequence[Tensor], counts: Tensor, top_k: int) -> Tensor:
    """Return the auxiliary loss of one group, a scalar with gradients by the logits.

    Args:
        router_logits: [tokens, experts] of each layer.
        counts: how often each token counts, [tokens]; 0 for padding.
        top_k: experts that are chosen for a token.
    """
    probabilities = torch.cat([logits.softmax(-1) for logits in router_logits])
    tokens, experts = probabilities.shape
    chosen = torch.zeros_like(probabilities)
    for token in range(tokens):
        chosen[token, probabilities[token].topk(top_k).indices] = 1.0
    weights = counts.to(probabilities.dtype).repeat(len(router_logits))[:, None]
    shares, means = (weights * chosen).sum(0) / weights.sum(), (weights * probabilities).sum(0) / weights.sum()
    return experts * (shares * means).sum()
