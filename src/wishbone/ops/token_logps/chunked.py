"""Log-probabilities in plain PyTorch, in chunks of tokens, so that the logits of a whole row never exist."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from wishbone.ops.token_logps.head import Head, score_by_chunks
from wishbone.ops.token_logps.scores import ReferenceStates, TokenScores

CHUNK_BYTES = 64 * 2**20
LEAST_TOKENS = 16
"""Tokens of a chunk whose logits would take more than `CHUNK_BYTES`."""


def token_logps_chunked(
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
    """Return the scores of `targets`; arguments as `token_logps`."""
    chunk = max(LEAST_TOKENS, min(chunk_bytes or CHUNK_BYTES, CHUNK_BYTES) // (4 * weight.shape[0]))
    head = _PlainHead(logit_scale, softcap, chunk)
    return score_by_chunks(hidden, weight, bias, targets, head, statistics=statistics, reference=reference)


class _PlainHead(Head):
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
        parts = []
        for tokens in self._chunks(hidden):
            if reference is None:
                logits = self._logits(hidden[tokens], weight, bias)
            else:
                raw = self._raw(reference.hidden[tokens], weight, bias)
                (reference.logps[tokens],), _ = _score(self._final(raw.clone()), targets[tokens], False)
                raw += self._raw(reference.difference[tokens], weight, None)
                logits = self._final(raw)
            capped = None if unit is None else self._capped(logits)
            scores, probabilities = _score(logits, targets[tokens], statistics)
            parts.append(scores)
            if unit is not None:
                gradient = self._logit_gradient(probabilities, targets[tokens], capped)
                torch.mm(gradient.to(weight.dtype), weight, out=unit[tokens])
        return _join(parts, hidden, statistics), ()

    def logit_gradients(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        coefficient: Tensor,
        kept: tuple[Tensor, ...],
    ) -> Iterator[tuple[slice, Tensor]]:
        for tokens in self._chunks(hidden):
            logits = self._logits(hidden[tokens], weight, bias)
            capped = self._capped(logits)
            _, probabilities = _score(logits, targets[tokens], statistics=False)
            gradient = self._logit_gradient(probabilities, targets[tokens], capped)
            gradient *= coefficient[tokens, None]
            yield tokens, gradient

    def scaled(self, unit: Tensor, coefficient: Tensor) -> Tensor:
        return unit * coefficient[:, None].to(unit.dtype)

    def add_product(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        total += left @ right

    def _chunks(self, hidden: Tensor) -> Iterator[slice]:
        return (slice(start, start + self.chunk) for start in range(0, hidden.shape[0], self.chunk))

    def _logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return z [tokens, vocabulary] in float32 or better."""
        return self._final(self._raw(hidden, weight, bias))

    def _raw(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return W h + b in float32 or better; on CUDA 16-bit products are not rounded on the way."""
        if hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16):
            logits = torch.mm(hidden, weight.t(), out_dtype=torch.float32)
            if bias is not None:
                logits += bias
        else:
            logits = F.linear(hidden, weight, bias)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits

    def _final(self, logits: Tensor) -> Tensor:
        """Return z of W h + b, which it may overwrite."""
        if self.scale != 1.0:
            logits *= self.scale
        if self.softcap is not None:
            logits = logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def _capped(self, logits: Tensor) -> Tensor | None:
        """Return z / c where logits are capped at c."""
        return None if self.softcap is None else logits / self.softcap

    def _logit_gradient(self, probabilities: Tensor, targets: Tensor, capped: Tensor | None) -> Tensor:
        """Return d log p_target / d (W h), overwriting `probabilities`."""
        gradient = probabilities.neg_()
        gradient.scatter_add_(1, targets[:, None], torch.ones_like(gradient[:, :1]))
        if capped is not None:
            gradient *= 1 - capped * capped
        if self.scale != 1.0:
            gradient *= self.scale
        return gradient


def _score(logits: Tensor, targets: Tensor, statistics: bool) -> tuple[list[Tensor], Tensor]:
    """Return the scores of one chunk, log p alone without `statistics`, and p, which overwrites the logits."""
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


def _join(parts: list[list[Tensor]], hidden: Tensor, statistics: bool) -> tuple[Tensor, ...]:
    """Concatenate the scores of all chunks; empty tensors where there is no token."""
    if parts:
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))
    empty = hidden.new_empty(0, dtype=torch.promote_types(hidden.dtype, torch.float32))
    return (empty, empty.clone(), empty.clone(), empty.bool(), empty.clone()) if statistics else (empty,)
