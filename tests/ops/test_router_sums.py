"""Sums over what routers do, against the definition."""

from __future__ import annotations

import pytest
import torch

from wishbone.ops.router_sums import router_sums
from wishbone.ops.router_sums.reference import load_balancing_loss_reference
from wishbone.preference.load_balancing import load_balancing_loss


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 3e-2)]
)
@pytest.mark.parametrize("at_a_time", [1, 300, 2**25])  # a layer, two, all
def test_losses_of_groups_are_those_of_the_definition(
    dtype: torch.dtype, tolerance: float, at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    layers = [torch.randn(20, 6, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(3)]
    weights = torch.zeros(20, 2, dtype=torch.float64)
    weights[:4, 0], weights[4:9, 0], weights[9:12, 1], weights[12:17, 1] = 2, 1, 2, 1  # the last three are padding
    monkeypatch.setattr("wishbone.ops.router_sums.AT_A_TIME", at_a_time)
    chosen, probable = router_sums(torch.stack(layers), weights, 2)
    losses = load_balancing_loss(chosen, probable, 3 * weights.sum(0))
    (losses[0] + 3 * losses[1]).backward()
    gradients = [logits.grad for logits in layers]

    own = [logits.detach().clone().requires_grad_() for logits in layers]
    expected = [load_balancing_loss_reference(own, weights[:, group], 2) for group in range(2)]
    (expected[0] + 3 * expected[1]).backward()
    assert torch.allclose(losses.detach(), torch.stack(expected).detach().double(), rtol=tolerance)
    for gradient, logits in zip(gradients, own, strict=True):
        assert gradient is not None and logits.grad is not None and gradient.norm() > 0
        assert (gradient - logits.grad).norm() <= tolerance * logits.grad.norm()
        assert not gradient[17:].any()
