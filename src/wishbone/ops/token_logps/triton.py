"""Log-probabilities in chunks of tokens: two matrix products a chunk, and one Triton kernel between them.

The floor of T tokens, hidden size H and vocabulary V is 4 T H V operations of the tensor cores and 10 T V bytes. It is
reached when a chunk has enough tokens: each chunk reads the head twice, and below some 500 tokens that reading is what
takes the time. The logits of a chunk are float32, whatever the head is; their gradient is in the dtype of the head and
lies over them (see `kernels`), so that a chunk costs 4 bytes a logit.

As in `chunked`, a frozen head gets the unit gradient d log p / d h in the forward pass, and a trained head computes its
logits again in the backward pass; it keeps the maximum and the sum of each token, so that the logits are read once
there. Nothing waits for the device.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from wishbone.ops.token_logps.kernels import differentiate_tokens, score_tokens
from wishbone.ops.token_logps.scores import TokenScores

BLOCK, WARPS = 4096, 16
"""Logits that a program handles at a time, and its warps."""

ROWS = 128
"""Chunks are multiples of this many tokens: the rows of one tile of a matrix product."""

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def token_logps_triton(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    chunk_bytes: int | None = None,
    statistics: bool = True,
) -> TokenScores:
    """Return the scores of `targets`; arguments as `token_logps`.

    Raises:
        ValueError: if the dtype or the device is one that Triton's kernels do not run on.
    """
    if hidden.dtype not in DTYPES:
        raise ValueError(f"hidden states of {hidden.dtype}: the triton backend takes bfloat16, float16 and float32")
    if not hidden.is_cuda and isinstance(score_tokens, triton.JITFunction):
        raise ValueError(
            f"hidden states on {hidden.device}: Triton runs on GPUs, and on a CPU only in its interpreter"
            " (TRITON_INTERPRET=1)"
        )
    if chunk_bytes is None:
        chunk_bytes = default_chunk_bytes(hidden.device)
    trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    function = _TrainedHead if trained and torch.is_grad_enabled() else _FrozenHead
    head = _Head(logit_scale, softcap, chunk_tokens(chunk_bytes, weight.shape[0]))
    scores = function.apply(hidden, weight, bias, targets.contiguous(), head, statistics)
    return TokenScores(*scores) if statistics else TokenScores.logps_alone(scores[0])


def chunk_tokens(chunk_bytes: int, vocabulary: int) -> int:
    """Return how many tokens' logits fit into `chunk_bytes`: a multiple of 128, at least 128."""
    return max(ROWS, chunk_bytes // (4 * _padded(vocabulary)) // ROWS * ROWS)


@functools.cache
def default_chunk_bytes(device: torch.device) -> int:
    """Return 1/128 of the device's memory, between 64 MiB and 1 GiB."""
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    return min(max(memory // 128, 64 * 2**20), 2**30)


def _padded(vocabulary: int) -> int:
    """Return the width of a row of logits: every row begins at a multiple of 512 bytes."""
    return -(-vocabulary // 128) * 128


@dataclass(frozen=True)
class _Head:
    """What the head does besides its matrix product, and how many tokens it does at a time."""

    scale: float
    softcap: float | None
    chunk: int

    def final(self, bias: Tensor | None) -> tuple[Tensor | None, float | None, float | None]:
        """Return bias, scale and softcap as the kernels take them."""
        return None if bias is None else bias.contiguous(), None if self.scale == 1.0 else self.scale, self.softcap


class _Chunks:
    """The logits of one chunk after another in the same memory, and their gradient over them.

    Args:
        hidden: [tokens, hidden_size].
        weight: [vocabulary, hidden_size].
        chunk: tokens at a time.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, chunk: int) -> None:
        self._hidden, self._weight, self._chunk = hidden, weight, chunk
        self.vocabulary, self.width = weight.shape[0], _padded(weight.shape[0])
        rows = min(chunk, hidden.shape[0])
        self._logits = torch.empty(rows, self.width, dtype=torch.float32, device=hidden.device)
        halves = self._logits if weight.dtype == torch.float32 else self._logits.view(weight.dtype)
        self._gradient = halves[:, -self.width :]

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield which tokens, their logits W h [tokens, width], and where the gradient goes [tokens, width]."""
        for start in range(0, self._hidden.shape[0], self._chunk):
            hidden = self._hidden[start : start + self._chunk]
            logits = self._logits[: hidden.shape[0]]
            _product(hidden, self._weight.t(), logits[:, : self.vocabulary])
            yield slice(start, start + hidden.shape[0]), logits, self._gradient[: hidden.shape[0]]


def _product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Set `out`, float32, to left @ right, which is not rounded to their own dtype on the way."""
    if left.dtype == torch.float32:
        torch.mm(left, right, out=out)
    elif left.is_cuda:
        torch.mm(left, right, out_dtype=torch.float32, out=out)
    else:
        torch.mm(left.float(), right.float(), out=out)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to `total`, float32, likewise."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
    elif left.is_cuda:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(left.float(), right.float())


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head: _Head,
        statistics: bool,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        unit = torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device) if ctx.needs_input_grad[0] else None
        scores = _score(hidden, weight, bias, targets, head, statistics, unit=unit)
        if unit is not None:
            ctx.save_for_backward(unit)
        ctx.mark_non_differentiable(*scores[1:])
        return scores

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        coefficient = grads[0]
        if coefficient is None:
            return (None,) * 6
        (unit,) = ctx.saved_tensors
        return torch.mul(unit, coefficient[:, None], out=torch.empty_like(unit)), *(None,) * 5


class _TrainedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head: _Head,
        statistics: bool,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        peaks = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        totals = torch.empty_like(peaks)
        scores = _score(hidden, weight, bias, targets, head, statistics, peaks=peaks, totals=totals)
        ctx.save_for_backward(hidden, weight, bias, targets, peaks, totals)
        ctx.head = head
        ctx.mark_non_differentiable(*scores[1:])
        return scores

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if grads[0] is None:
            return (None,) * 6
        hidden, weight, bias, targets, peaks, totals = ctx.saved_tensors
        coefficient = grads[0].contiguous()
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        hidden_grad = torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device) if wants_hidden else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        bias_grad = torch.zeros_like(bias, dtype=torch.float32) if wants_bias else None
        chunks = _Chunks(hidden, weight, ctx.head.chunk)
        for tokens, logits, gradient in chunks:
            with torch.cuda.device_of(hidden):
                differentiate_tokens[(logits.shape[0],)](
                    logits,
                    gradient,
                    *ctx.head.final(bias),
                    targets[tokens],
                    peaks[tokens],
                    totals[tokens],
                    coefficient[tokens],
                    chunks.vocabulary,
                    chunks.width,
                    gradient.stride(0),
                    BLOCK=BLOCK,
                    num_warps=WARPS,
                )
            gradient = gradient[:, : chunks.vocabulary]
            if hidden_grad is not None:
                torch.mm(gradient, weight, out=hidden_grad[tokens])
            if weight_grad is not None:
                _add_product(weight_grad, gradient.t(), hidden[tokens])
            if bias_grad is not None:
                bias_grad += gradient.sum(0, dtype=torch.float32)
        return (
            hidden_grad,
            None if weight_grad is None else weight_grad.to(weight.dtype),
            None if bias_grad is None else bias_grad.to(bias.dtype),
            *(None,) * 3,
        )


def _score(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    head: _Head,
    statistics: bool,
    *,
    unit: Tensor | None = None,
    peaks: Tensor | None = None,
    totals: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Return the scores that are asked for, and set `unit` to d log p / d hidden where it is given."""

    def empty(dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(targets.shape, dtype=dtype, device=hidden.device)

    logps = empty()
    companions = (empty(), empty(), empty(torch.bool), empty()) if statistics else ()
    columns = (logps, *(companions or (None,) * 4), peaks, totals)
    chunks = _Chunks(hidden, weight, head.chunk)
    for tokens, logits, gradient in chunks:
        with torch.cuda.device_of(hidden):
            score_tokens[(logits.shape[0],)](
                logits,
                None if unit is None else gradient,
                *head.final(bias),
                targets[tokens],
                *(None if column is None else column[tokens] for column in columns),
                chunks.vocabulary,
                chunks.width,
                gradient.stride(0),
                BLOCK=BLOCK,
                num_warps=WARPS,
            )
        if unit is not None:
            torch.mm(gradient[:, : chunks.vocabulary], weight, out=unit[tokens])
    return logps, *companions
