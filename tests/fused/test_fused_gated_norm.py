"""Norms with a gate run in one pass, with the module's own values and gradients."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model

from wishbone.fused.gated_norm import gated_norm_forward, gated_norm_of
from wishbone.fused.layers import FusedLayers


@pytest.mark.parametrize(("family", "gate_first"), [("qwen3_5_text", False), ("bamba", True)])
def test_it_is_found_and_equals_the_modules_own(family: str, gate_first: bool) -> None:
    model = tiny_model(family).requires_grad_(False)
    norms = FusedLayers(model, norms_everywhere=True).norms.norms
    (name,) = (name for name in norms if type(model.get_submodule(name)).__name__.endswith("RMSNormGated"))
    module = model.get_submodule(name)
    norm = gated_norm_of(module)
    assert norm is not None and norm.gate_first is gate_first
    g = torch.Generator().manual_seed(0)
    x, gate, upstream = (torch.randn(1, 7, len(module.weight), generator=g) for _ in range(3))
    results = []
    for forward in (module, gated_norm_forward(module, module.forward, norm)):
        leaves = [one.clone().requires_grad_() for one in (x, gate)]
        y = forward(*leaves)
        results.append([y, *torch.autograd.grad((y * upstream).sum(), leaves)])
    for own, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, own, rtol=1e-5, atol=1e-5)


def test_a_trained_weight_and_a_call_without_gate_keep_the_modules_own_forward() -> None:
    model = tiny_model("bamba").requires_grad_(False)
    module = next(one for one in model.modules() if type(one).__name__.endswith("RMSNormGated"))
    norm = gated_norm_of(module)
    assert norm is not None
    x = torch.randn(1, 3, len(module.weight))
    assert torch.equal(gated_norm_forward(module, module.forward, norm)(x), module(x))
    module.weight.requires_grad_()
    assert gated_norm_of(module) is None
