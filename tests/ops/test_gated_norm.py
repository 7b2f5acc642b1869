"""The gated norm's kernel against its definition."""

from __future__ import annotations

import pytest
import torch

from wishbone.ops.gated_norm import GatedNorm, gated_norm_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.kernels
@pytest.mark.parametrize("norm", [GatedNorm(1e-3, True, 6), GatedNorm(1e-6, False, 12)])
def test_kernel_is_the_definition(norm: GatedNorm) -> None:
    from wishbone.ops.gated_norm.triton import gated_norm_triton

    g = torch.Generator().manual_seed(0)
    x, gate, upstream = (torch.randn(2, 5, 12, generator=g, dtype=torch.float64) for _ in range(3))
    weight = torch.rand(12, generator=g, dtype=torch.float64)
    results = []
    for op, dtype, device in (
        (gated_norm_reference, torch.float64, "cpu"),
        (gated_norm_triton, torch.float32, DEVICE),
    ):
        leaves = [one.to(device, dtype).requires_grad_() for one in (x, gate)]
        y = op(*leaves, weight.to(device, dtype), norm)
        results.append([y, *torch.autograd.grad((y * upstream.to(device, dtype)).sum(), leaves)])
    for exact, got in zip(*results, strict=True):
        assert (got.cpu().double() - exact).norm() <= 1e-6 * exact.norm()
