"""Log-probabilities of completion tokens from hidden states: one op, its definition and two fast backends."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from wishbone.ops.token_logps.chunked import token_logps_chunked
from wishbone.ops.token_logps.reference import scores_of_logits, token_logps_reference
from wishbone.ops.token_logps.scores import ReferenceStates, TokenScores

Backend = Literal["auto", "triton", "chunked", "reference"]

__all__ = ["Backend", "ReferenceStates", "TokenScores", "scores_of_logits", "token_logps"]


def token_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    chunk_bytes: int | None = None,
    statistics: bool = True,
    reference: ReferenceStates | None = None,
    backend: Backend = "auto",
) -> TokenScores:
    """Return log p(target) and its companions for each hidden state that predicts a completion token.

    Args:
        hidden: [tokens, hidden_size], float16, bfloat16, float32 or float64.
        weight: [vocabulary, hidden_size], the output embedding; the dtype of `hidden`.
        targets: [tokens], int64.
        bias: [vocabulary] or None.
        logit_scale: factor on the logits (Cohere, Granite, Falcon-H1).
        softcap: bound of the tanh soft-capping of the logits (Gemma), or None.
        chunk_bytes: memory for the logits of the tokens that are scored at a time, but at least what the smallest chunk
            needs, and at most the default of the backend, which None stands for. "reference" takes all tokens at once.
        statistics: whether to compute more than `logps`; otherwise the other fields are NaN (`is_top1` False).
        reference: the reference's states and the policy's difference from them, for a head that is not trained; the
            scores are then of the logits that these give, and the reference's `logps` are written there.
        backend: "triton", "chunked", or "reference" for the definition, by name; or "auto": "triton" on CUDA where it
            is installed and takes the dtype, "chunked" elsewhere.

    Raises:
        ValueError: if the backend is unknown, or one asked for by name cannot run here or on these tensors.
    """
    if backend == "auto":
        takes_dtype = hidden.dtype in (torch.bfloat16, torch.float16, torch.float32)
        backend = "triton" if hidden.is_cuda and takes_dtype and _triton_installed() else "chunked"
    options: dict[str, Any] = {
        "bias": bias,
        "logit_scale": logit_scale,
        "softcap": softcap,
        "statistics": statistics,
        "reference": reference,
    }
    if backend == "triton":
        if not _triton_installed():
            raise ValueError("backend 'triton' needs the package triton, which is not installed: pip install triton")
        from wishbone.ops.token_logps.triton import token_logps_triton

        return token_logps_triton(hidden, weight, targets, chunk_bytes=chunk_bytes, **options)
    if backend == "chunked":
        return token_logps_chunked(hidden, weight, targets, chunk_bytes=chunk_bytes, **options)
    if backend == "reference":
        return token_logps_reference(hidden, weight, targets, **options)
    raise ValueError(f"backend {backend!r} is not one of auto, triton, chunked, reference")


@cache
def _triton_installed() -> bool:
    return find_spec("triton") is not None
