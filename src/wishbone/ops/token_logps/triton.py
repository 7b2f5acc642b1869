"""Log-probabilities in chunks of tokens: two matrix products a chunk, and one Triton kernel between them.

At best, T tokens with hidden size H and vocabulary V take 4 T H V operations of the tensor cores and 10 T V bytes of
memory traffic. This is reached when a chunk has enough tokens: each chunk reads the head twice, and below about 500
tokens that reading takes most of the time. The logits of a chunk are float32, whatever the head is; their gradient is
in the dtype of the head and lies over them (see `kernels`), so a chunk costs 4 bytes a logit.

For a trained head the forward pass keeps the maximum and the sum of each token, so that the backward pass reads the
logits once. The host never waits for the device.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from wishbone.ops.launch_sizes import tiles
from wishbone.ops.token_logps.head import Head, score_by_chunks
from wishbone.ops.token_logps.kernels import differentiate_tokens, score_tokens
from wishbone.ops.token_logps.scores import ReferenceStates, TokenScores

BLOCK, WARPS = 4096, 16
"""Logits that a program handles at a time, and its warps."""

ROWS = 128
"""Chunks are multiples of this many tokens: the rows of one tile of a matrix product."""

WIDTH_MULTIPLE = 128
"""Rows of logits are padded to a multiple of this many: each begins at a multiple of 512 bytes."""

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
    reference: ReferenceStates | None = None,
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
    most = default_chunk_bytes(hidden.device)
    chunk_bytes = most if chunk_bytes is None else min(chunk_bytes, most)
    head = _TritonHead(logit_scale, softcap, chunk_tokens(chunk_bytes, weight.shape[0]))
    bias = None if bias is None else bias.contiguous()
    return score_by_chunks(hidden, weight, bias, targets.contiguous(), head, statistics=statistics, reference=reference)


def chunk_tokens(chunk_bytes: int, vocabulary: int) -> int:
    """Return how many tokens' logits fit into `chunk_bytes`: a multiple of 128, at least 128."""
    return max(ROWS, chunk_bytes // (4 * _padded(vocabulary)) // ROWS * ROWS)


@functools.cache
def default_chunk_bytes(device: torch.device) -> int:
    """Return 1/128 of the device's memory, between 64 MiB and 1 GiB."""
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    return min(max(memory // 128, 64 * 2**20), 2**30)


def _padded(vocabulary: int) -> int:
    """Return the width of a row of logits."""
    return tiles(vocabulary, WIDTH_MULTIPLE) * WIDTH_MULTIPLE


class _TritonHead(Head):
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
        def empty(dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(targets.shape, dtype=dtype, device=hidden.device)

        logps = empty()
        companions = (empty(), empty(), empty(torch.bool), empty()) if statistics else ()
        peaks_and_totals = (empty(), empty()) if keep else ()
        columns = (logps, *(companions or (None,) * 4), *(peaks_and_totals or (None,) * 2))
        chunks = _Chunks(hidden if reference is None else reference.hidden, weight, self.chunk)

        def score_chunk(tokens: slice, logits: Tensor, gradient: Tensor | None, columns: Sequence[Any]) -> None:
            with torch.cuda.device_of(hidden):
                score_tokens[(logits.shape[0],)](
                    logits,
                    gradient,
                    bias,
                    self._kernel_scale,
                    self.softcap,
                    targets[tokens],
                    *(None if column is None else column[tokens] for column in columns),
                    chunks.vocabulary,
                    chunks.width,
                    chunks.stride_gradient,
                    BLOCK=BLOCK,
                    num_warps=WARPS,
                )

        for tokens, logits, gradient in chunks:
            if reference is not None:
                score_chunk(tokens, logits, None, (reference.logps, *(None,) * 6))
                self.add_product(logits[:, : chunks.vocabulary], reference.difference[tokens], weight.t())
            score_chunk(tokens, logits, None if unit is None else gradient, columns)
            if unit is not None:
                torch.mm(gradient[:, : chunks.vocabulary], weight, out=unit[tokens])
        return (logps, *companions), peaks_and_totals

    def logit_gradients(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        coefficient: Tensor,
        kept: tuple[Tensor, ...],
    ) -> Iterator[tuple[slice, Tensor]]:
        peaks, totals = kept
        coefficient = coefficient.contiguous()
        chunks = _Chunks(hidden, weight, self.chunk)
        for tokens, logits, gradient in chunks:
            with torch.cuda.device_of(hidden):
                differentiate_tokens[(logits.shape[0],)](
                    logits,
                    gradient,
                    bias,
                    self._kernel_scale,
                    self.softcap,
                    targets[tokens],
                    peaks[tokens],
                    totals[tokens],
                    coefficient[tokens],
                    chunks.vocabulary,
                    chunks.width,
                    chunks.stride_gradient,
                    BLOCK=BLOCK,
                    num_warps=WARPS,
                )
            yield tokens, gradient[:, : chunks.vocabulary]

    def scaled(self, unit: Tensor, coefficient: Tensor) -> Tensor:
        return torch.mul(unit, coefficient[:, None], out=torch.empty_like(unit))  # the coefficient keeps its precision

    def add_product(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        if left.dtype == torch.float32:
            total.addmm_(left, right)
        elif left.is_cuda:
            torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
        else:
            total.addmm_(left.float(), right.float())

    @property
    def _kernel_scale(self) -> float | None:
        """The scale as kernels take it: None, which costs nothing, instead of 1."""
        return None if self.scale == 1.0 else self.scale


class _Chunks:
    """The logits of one chunk after another in the same memory, and their gradient over them.

    Args:
        hidden: [tokens, hidden_size].
        weight: [vocabulary, hidden_size].
        chunk: tokens at a time.

    Attributes:
        vocabulary: logits of a token.
        width: columns of a row of logits, with its padding.
        stride_gradient: elements from one row of the gradient to the next.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, chunk: int) -> None:
        self._hidden, self._weight, self._chunk = hidden, weight, chunk
        self.vocabulary, self.width = weight.shape[0], _padded(weight.shape[0])
        rows = min(chunk, hidden.shape[0])
        self._logits = torch.empty(rows, self.width, dtype=torch.float32, device=hidden.device)
        halves = self._logits if weight.dtype == torch.float32 else self._logits.view(weight.dtype)
        self._gradient = halves[:, -self.width :]
        self.stride_gradient = self._gradient.stride(0)

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
