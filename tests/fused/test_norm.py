"""Fused norms inside whole models give the results of the families' own."""

from __future__ import annotations

import pytest
import torch
from tiny import ATTENTION_FAMILIES, tiny_model
from torch import Tensor, nn

from wishbone.fused.norm import FusedNorms
from wishbone.model.adapter import add_adapter

IDS = torch.tensor([[5, 9, 60, 33, 17, 99, 4, 71, 12, 12, 8]])
NORMS_A_LAYER = {"llama": 2, "mistral": 2, "qwen2": 2, "qwen3": 4, "gemma2": 4, "gemma3_text": 6, "phi3": 2, "olmo2": 4,
                 "smollm3": 2, "granite": 2, "gpt_neox": 0, "cohere": 1}  # fmt: skip


def loss_and_gradients(model: nn.Module) -> list[Tensor]:
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 2e-6), (torch.float32, 2e-5)])
@pytest.mark.parametrize("family", ATTENTION_FAMILIES)
def test_loss_and_gradients_are_the_familys_own(family: str, dtype: torch.dtype, tolerance: float) -> None:
    model = add_adapter(tiny_model(family, dtype=dtype), rank=4, seed=0).to(dtype)
    fused = FusedNorms(model, everywhere=True)
    layers = model.config.num_hidden_layers
    assert len(fused.norms) == (NORMS_A_LAYER[family] * layers + 1 if NORMS_A_LAYER[family] else 0)
    expected = loss_and_gradients(model)
    with fused.running(), fused.running():
        assert all("forward" in vars(model.get_submodule(name)) for name in fused.norms)
        got = loss_and_gradients(model)
    assert not any("forward" in vars(module) for module in model.modules())
    for value, own in zip(got, expected, strict=True):
        assert (value - own).norm() <= tolerance * own.norm()


def test_a_trained_norm_and_one_of_another_kind_run_their_own_forward() -> None:
    model = tiny_model("llama")
    assert FusedNorms(model, everywhere=True).norms == []
    model.requires_grad_(False)
    fused = FusedNorms(model, everywhere=True)
    model.model.norm.weight.requires_grad_()
    model.model.layers[0].input_layernorm.variance_epsilon = 0.5
    expected = loss_and_gradients(model)
    with FusedNorms(model, everywhere=True).running():
        for value, own in zip(loss_and_gradients(model), expected, strict=True):
            assert (value - own).norm() <= 2e-5 * own.norm()
    assert len(expected) == 2 and len(fused.norms) == 5


class _Scaled(nn.Module):
    """Looks like an RMSNorm and is none."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8), requires_grad=False), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / (x.abs().mean(-1, keepdim=True) + self.eps)


def test_what_only_looks_like_a_norm_is_left_alone() -> None:
    model = nn.Sequential(_Scaled(), nn.LayerNorm(8, bias=False).requires_grad_(False))
    assert FusedNorms(model, everywhere=True).norms == []


def test_cpu_models_keep_their_norms_unless_asked() -> None:
    fused = FusedNorms(tiny_model("llama").requires_grad_(False))
    assert fused.norms == []
