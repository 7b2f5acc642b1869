"""Which backend of token_logps is chosen, and what it leaves out; test_token_logps_kernels.py has its kernels."""

from __future__ import annotations

import os

import pytest
import torch

from wishbone.ops.token_logps import token_logps


def test_the_cpu_is_chunked_and_triton_by_name_is_refused_there() -> None:
    hidden, weight, targets = torch.randn(5, 4), torch.randn(7, 4), torch.tensor([0, 6, 3, 3, 1])
    chosen = token_logps(hidden, weight, targets)
    chunked = token_logps(hidden, weight, targets, backend="chunked")
    assert torch.equal(chosen.logps, chunked.logps) and torch.equal(chosen.entropy, chunked.entropy)
    if os.environ.get("TRITON_INTERPRET") != "1":  # with it, kernels do run here
        with pytest.raises(ValueError, match=r"Triton runs on GPUs|needs the package triton"):
            token_logps(hidden, weight, targets, backend="triton")
    with pytest.raises(ValueError, match="'cublas' is not one of auto, triton, chunked, reference"):
        token_logps(hidden, weight, targets, backend="cublas")  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["chunked", "reference"])
@pytest.mark.parametrize("trained", [False, True])
def test_what_nobody_asks_for_changes_nothing(backend: str, trained: bool) -> None:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 4, generator=g).requires_grad_()
    weight = torch.randn(7, 4, generator=g).requires_grad_(trained)
    targets = torch.tensor([0, 6, 3, 3, 1])
    every = token_logps(hidden, weight, targets, backend=backend, chunk_bytes=100)
    alone = token_logps(hidden, weight, targets, backend=backend, chunk_bytes=100, statistics=False)
    assert torch.equal(alone.logps, every.logps) and alone.entropy.isnan().all() and every.entropy.isfinite().all()
    leaves = [hidden, weight] if trained else [hidden]
    gradients = [torch.autograd.grad(scores.logps.sum(), leaves) for scores in (every, alone)]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
