"""Which backend of token_logps is chosen, and what it leaves out; test_token_logps_kernels.py has its kernels."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from wishbone.ops.token_logps import ReferenceStates, token_logps


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


@pytest.mark.parametrize("backend", ["reference", "chunked", pytest.param("triton", marks=pytest.mark.kernels)])
def test_logits_of_a_carried_difference_give_a_small_log_ratio_its_own_precision(
    backend: Any,
) -> None:
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    g = torch.Generator().manual_seed(0)
    reference, weight = (torch.randn(n, 32, generator=g).to(device, torch.bfloat16) for n in (20, 128))
    difference = (1e-3 * torch.randn(20, 32, generator=g)).to(device, torch.bfloat16)
    targets = torch.randint(0, 128, (20,), generator=g).to(device)
    policy = (reference + difference).requires_grad_()
    options: dict[str, Any] = {"logit_scale": 0.3, "softcap": 3.0, "backend": backend, "chunk_bytes": 64}
    states = ReferenceStates.of(reference, difference)
    own = token_logps(policy, weight, targets, reference=states, **options)
    exact = [
        token_logps(h, weight.double().cpu(), targets.cpu(), **options | {"backend": "reference"}).logps
        for h in (reference.double().cpu() + difference.double().cpu(), reference.double().cpu())
    ]
    ratio = exact[0] - exact[1]
    got = (own.logps - states.logps).detach().double().cpu()
    assert (got - ratio).norm() <= 0.02 * ratio.norm()
    rounded = token_logps(policy, weight, targets, **options)
    apart = (rounded.logps - token_logps(reference, weight, targets, **options).logps).detach().double().cpu()
    assert (apart - ratio).norm() > 0.5 * ratio.norm(), "hidden states that are rounded apart"
    gradients = [torch.autograd.grad(scores.logps.sum(), policy)[0] for scores in (own, rounded)]
    assert (gradients[0] - gradients[1]).norm() <= 0.02 * gradients[1].norm()


def test_a_trained_head_takes_no_states_of_the_reference() -> None:
    hidden, weight = torch.randn(5, 4), torch.randn(7, 4).requires_grad_()
    states = ReferenceStates.of(hidden, 0 * hidden)
    with pytest.raises(NotImplementedError, match="a head that is trained"):
        token_logps(hidden, weight, torch.zeros(5, dtype=torch.long), reference=states)
