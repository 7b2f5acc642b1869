r"""Log-probabilities in chunks of tokens, so that the logits of a whole row never exist.

With a frozen head the only gradient is that of the hidden states, and it is a fixed direction times the coefficient
that the loss sends back:

    d log p_t / d h = s W^T [ (e_t - p) * cap'(z) ]          (the unit gradient)

It is taken in the forward pass while the chunk's logits are at hand and multiplied by the coefficient in the backward
pass: two matrix products a chunk instead of the three of recomputation. A head that is trained itself needs the
coefficient for its own gradient, so its chunks are computed again in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wishbone.ops.token_logps.scores import TokenScores

CHUNK_BYTES = 64 * 2**20


def token_logps_chunked(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    chunk_bytes: int | None = None,
    chunk_tokens: int | None = None,
    statistics: bool = True,
) -> TokenScores:
    """Return the scores of `targets`; arguments as `token_logps`, or `chunk_tokens` tokens at a time."""
    if chunk_tokens is None:
        chunk_tokens = max(16, (chunk_bytes or CHUNK_BYTES) // (4 * weight.shape[0]))
    trained_head = weight.requires_grad or (bias is not None and bias.requires_grad)
    function = _TrainedHead if trained_head and torch.is_grad_enabled() else _FrozenHead
    scores = function.apply(hidden, weight, bias, targets, logit_scale, softcap, chunk_tokens, statistics)
    return TokenScores(*scores) if statistics else TokenScores.logps_alone(scores[0])


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    """Logits [tokens, vocabulary] in float32 or better; on CUDA 16-bit products are not rounded on the way."""
    if hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16):
        logits = torch.mm(hidden, weight.t(), out_dtype=torch.float32)
        if bias is not None:
            logits += bias
    else:
        logits = F.linear(hidden, weight, bias)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if scale != 1.0:
        logits *= scale
    if softcap is not None:
        logits = logits.div_(softcap).tanh_().mul_(softcap)
    return logits


def _score(logits: Tensor, targets: Tensor, statistics: bool) -> tuple[list[Tensor], Tensor]:
    """Scores of one chunk, log p alone without `statistics`, and its probabilities, which overwrite the logits."""
    top, top_index = logits.max(-1)
    at_target = logits.gather(1, targets[:, None])[:, 0]
    mean = logits.mean(-1) if statistics else None
    logits -= top[:, None]
    exponentials = torch.exp(logits)
    total = exponentials.sum(-1)
    log_total = total.log()
    scores = [at_target - top - log_total]
    if mean is not None:
        weighted = torch.linalg.vecdot(exponentials, logits) / total
        squares = torch.linalg.vecdot(exponentials, exponentials)
        scores += [log_total - weighted, mean, top_index == targets, squares.log() - 2 * log_total]
    exponentials /= total[:, None]
    return scores, exponentials


def _logit_gradient(probabilities: Tensor, targets: Tensor, capped: Tensor | None, scale: float) -> Tensor:
    """Return d log p_target / d (W h + b), overwriting `probabilities`; `capped` is z / c where logits are capped."""
    gradient = probabilities.neg_()
    gradient.scatter_add_(1, targets[:, None], torch.ones_like(gradient[:, :1]))
    if capped is not None:
        gradient *= 1 - capped * capped
    if scale != 1.0:
        gradient *= scale
    return gradient


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        softcap: float | None,
        chunk: int,
        statistics: bool,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        wants_gradient = ctx.needs_input_grad[0]
        unit = torch.empty_like(hidden) if wants_gradient else None
        parts = []
        for start in range(0, hidden.shape[0], chunk):
            rows = slice(start, start + chunk)
            logits = _logits(hidden[rows], weight, bias, scale, softcap)
            capped = logits / softcap if softcap is not None and wants_gradient else None
            scores, probabilities = _score(logits, targets[rows], statistics)
            parts.append(scores)
            if unit is not None:
                gradient = _logit_gradient(probabilities, targets[rows], capped, scale)
                torch.mm(gradient.to(weight.dtype), weight, out=unit[rows])
        if unit is not None:
            ctx.save_for_backward(unit)
        outputs = _join(parts, hidden, statistics)
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        coefficient = grads[0]
        if coefficient is None:
            return (None,) * 8
        (unit,) = ctx.saved_tensors
        return (unit * coefficient[:, None].to(unit.dtype), *(None,) * 7)


class _TrainedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        softcap: float | None,
        chunk: int,
        statistics: bool,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.scale, ctx.softcap, ctx.chunk = scale, softcap, chunk
        parts = []
        for start in range(0, hidden.shape[0], chunk):
            rows = slice(start, start + chunk)
            scores, _ = _score(_logits(hidden[rows], weight, bias, scale, softcap), targets[rows], statistics)
            parts.append(scores)
        outputs = _join(parts, hidden, statistics)
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        coefficient = grads[0]
        if coefficient is None:
            return (None,) * 8
        hidden, weight, bias, targets = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        precise = coefficient.dtype
        hidden_grad = torch.empty_like(hidden) if wants_hidden else None
        weight_grad = torch.zeros_like(weight, dtype=precise) if wants_weight else None
        bias_grad = torch.zeros_like(bias, dtype=precise) if wants_bias else None
        for start in range(0, hidden.shape[0], ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            logits = _logits(hidden[rows], weight, bias, ctx.scale, ctx.softcap)
            capped = logits / ctx.softcap if ctx.softcap is not None else None
            _, probabilities = _score(logits, targets[rows], statistics=False)
            gradient = _logit_gradient(probabilities, targets[rows], capped, ctx.scale)
            gradient *= coefficient[rows, None]
            if bias_grad is not None:
                bias_grad += gradient.sum(0)
            gradient = gradient.to(weight.dtype)
            if hidden_grad is not None:
                torch.mm(gradient, weight, out=hidden_grad[rows])
            if weight_grad is not None:
                weight_grad += gradient.t() @ hidden[rows]
        return (
            hidden_grad,
            None if weight_grad is None else weight_grad.to(weight.dtype),
            None if bias_grad is None else bias_grad.to(bias.dtype),
            *(None,) * 5,
        )


def _join(parts: list[list[Tensor]], hidden: Tensor, statistics: bool) -> tuple[Tensor, ...]:
    """Concatenate the scores of all chunks; empty tensors where there was no token."""
    if parts:
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))
    empty = hidden.new_empty(0, dtype=torch.promote_types(hidden.dtype, torch.float32))
    return (empty, empty.clone(), empty.clone(), empty.bool(), empty.clone()) if statistics else (empty,)
