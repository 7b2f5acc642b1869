r"""Log-probability of each target token from the hidden state that predicts it: the definition.

z = cap(s (W h + b)),      log p = z_target - log sum_v exp z_v,      cap(z) = c tanh(z / c)  or z
"""

from __future__ import annotations

import torch
from torch import Tensor

from wishbone.ops.token_logps.scores import ReferenceStates, TokenScores


def token_logps_reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    statistics: bool = True,
    reference: ReferenceStates | None = None,
) -> TokenScores:
    """Return the scores of `targets`, materializing all logits; arguments as `token_logps`."""
    precise = torch.promote_types(hidden.dtype, torch.float32)

    def capped(raw: Tensor) -> Tensor:
        logits = raw.to(precise) * logit_scale
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)

    raw = torch.nn.functional.linear(hidden, weight, bias).to(precise)
    if reference is not None:
        base = torch.nn.functional.linear(reference.hidden, weight, bias).to(precise)
        reference.logps.copy_(scores_of_logits(capped(base), targets).logps)
        formed = base + torch.nn.functional.linear(reference.difference, weight).to(precise)
        raw = raw + (formed - raw).detach()  # the values of one, the gradient of the other
    scores = scores_of_logits(capped(raw), targets)
    return scores if statistics else TokenScores.logps_alone(scores.logps)


def scores_of_logits(logits: Tensor, targets: Tensor) -> TokenScores:
    """Return the scores of `targets` [tokens] under `logits` [tokens, vocabulary]."""
    log_probs = torch.log_softmax(logits, dim=-1)
    frozen = log_probs.detach()
    return TokenScores(
        logps=log_probs.gather(1, targets[:, None])[:, 0],
        entropy=-(frozen.exp() * frozen).sum(-1),
        mean_logit=logits.detach().mean(-1),
        is_top1=logits.argmax(-1) == targets,
        log_sum_sq_probs=(2 * frozen).logsumexp(-1),
    )
