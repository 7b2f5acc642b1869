"""Log-probabilities of completion tokens straight from hidden states: one op, its reference and its chunked form."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from wishbone.ops.token_logps.chunked import token_logps_chunked
from wishbone.ops.token_logps.reference import scores_of_logits, token_logps_reference
from wishbone.ops.token_logps.scores import TokenScores

__all__ = ["TokenScores", "scores_of_logits", "token_logps"]


def token_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    backend: Literal["chunked", "reference"] = "chunked",
) -> TokenScores:
    """Return log p(target) and its companions for each hidden state that predicts a completion token.

    Args:
        hidden: [tokens, hidden_size], float16, bfloat16, float32 or float64.
        weight: [vocabulary, hidden_size], the output embedding; the dtype of `hidden`.
        targets: [tokens], int64.
        bias: [vocabulary] or None.
        logit_scale: factor on the logits (Cohere, Granite, Falcon-H1).
        softcap: bound of the tanh soft-capping of the logits (Gemma), or None.
        backend: "chunked", or "reference" for the definition.
    """
    function = token_logps_chunked if backend == "chunked" else token_logps_reference
    return function(hidden, weight, targets, bias=bias, logit_scale=logit_scale, softcap=softcap)
