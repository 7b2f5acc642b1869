"""Fused layers on a CUDA device: the error of PEFT's own layers under autocast against float64, and hardly more.

An adapter is added by rounding at random, which is right on average and, number by number, 1.2 times as far off.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import loaded_in_fp8, tiny_model
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from wishbone.fused import norm as fused_norm
from wishbone.fused.layers import FusedLayers
from wishbone.fused.norm import FusedNorms
from wishbone.model.adapter import add_adapter
from wishbone.model.fp8 import FP8_ARITHMETIC
from wishbone.ops.fp8_quantize import rms_norm_quantize

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def loss_and_gradients(model: nn.Module, ids: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def total_error(values: list[Tensor], exact: list[Tensor]) -> float:
    return sum(float((value - e).norm() / e.norm()) for value, e in zip(values, exact, strict=True))


@pytest.mark.parametrize("tile_tokens", [None, 50])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3", "olmo2", "phi3", "gpt_neox"])
def test_whole_models_lose_no_more_than_peft(family: str, dtype: torch.dtype, tile_tokens: int | None) -> None:
    fused = plain = 0.0
    for seed in range(3):
        model = add_adapter(tiny_model(family, dtype=dtype, seed=seed).double(), rank=8, seed=0).double().cuda()
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator).cuda().double() * 0.3
        ids = torch.randint(3, 120, (2, 64), generator=generator).cuda()
        exact = loss_and_gradients(model, ids)
        model.to(dtype)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
        layers = FusedLayers(model)
        assert layers.rotary.layers
        with torch.autocast("cuda", dtype=dtype):
            plain += total_error(loss_and_gradients(model, ids), exact)
            with layers.running(tile_tokens=tile_tokens):
                fused += total_error(loss_and_gradients(model, ids), exact)
        if seed == 0:
            layers.linears.join_weights()
    assert 0 < fused <= 1.15 * plain


def test_what_is_kept_for_the_backward_pass() -> None:
    """An MLP keeps its input and the outputs of gate and up: 2 (K + 2 I) bytes a token, and little else."""
    hidden, wide, tokens = 512, 2048, 4096
    model = tiny_model("llama", hidden_size=hidden, intermediate_size=wide, num_hidden_layers=1, dtype=torch.bfloat16)
    model = add_adapter(model.cuda(), rank=8, seed=0)
    mlp = model.base_model.model.model.layers[0].mlp
    x = torch.randn(1, tokens, hidden, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    with FusedLayers(model).running(), torch.autocast("cuda", dtype=torch.bfloat16):
        mlp(x[:, :8])
        before = torch.cuda.memory_allocated()
        y = mlp(x)
        kept = torch.cuda.memory_allocated() - before - y.nbytes
        y.sum().backward()
    assert kept <= 2 * tokens * 2 * wide * 1.05


@pytest.mark.parametrize("one_buffer", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_norms_that_quantize_for_fp8_layers_change_no_bit(
    family: str, one_buffer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention is that of `SDPBackend.MATH`, whose backward pass gives the same bits each time."""
    if obstacle := FP8_ARITHMETIC.obstacle(torch.device("cuda")):
        pytest.skip(obstacle)
    model = tiny_model(family, hidden_size=1024, intermediate_size=2048, dtype=torch.bfloat16).cuda()
    model = add_adapter(loaded_in_fp8(model), rank=8, seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).cuda() * 0.1
    ids = torch.randint(3, 120, (2, 64), generator=generator).cuda()
    if one_buffer:
        assert FusedLayers(model).linears.join_weights()
    apart, together = FusedLayers(model), FusedLayers(model)
    apart.norms = FusedNorms(model)
    quantized = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        quantized.append(args[0].shape)
        return rms_norm_quantize(*args, **kwargs)

    monkeypatch.setattr(fused_norm, "rms_norm_quantize", counted)
    with sdpa_kernel(SDPBackend.MATH), torch.autocast("cuda", dtype=torch.bfloat16):
        with apart.running():
            expected = loss_and_gradients(model, ids)
        assert len(expected) > 1 and not quantized
        for norms in (0, 4):
            quantized.clear()
            with together.running():
                got = loss_and_gradients(model, ids)
            assert len(quantized) == norms and all(map(torch.equal, got, expected))
