"""A training step with fused linear layers, norms and rotary embeddings against the same step with the model's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from tiny import ATTENTION_FAMILIES, loaded_in_fp8, tiny_model, tiny_pairs
from torch import Tensor

from wishbone.data.batch import TokenizedPair, truncated_pair
from wishbone.engine.execution import Execution
from wishbone.engine.step import PreferenceStep
from wishbone.fused.layers import FusedLayers
from wishbone.fused.linear import FusedLinears
from wishbone.fused.norm import FusedNorms
from wishbone.model.adapter import add_adapter
from wishbone.policy.activations import allow_recompute
from wishbone.policy.policy import Policy
from wishbone.preference.metrics import PairMetrics
from wishbone.preference.objective import Objective
from wishbone.reference.reference import AdapterDisabled
from wishbone.reference.synchronized import SynchronizedAdapter


def adapted(family: str, dtype: torch.dtype = torch.float64) -> PeftModel:
    model = add_adapter(tiny_model(family, dtype=dtype), rank=4, alpha=8, seed=0).to(dtype)
    draw(model, 1)
    return model.eval()


def draw(model: PeftModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B.default" in name:
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
            parameter.data = values.to(parameter.dtype)


PAIRS: list[TokenizedPair] = [truncated_pair(*pair) for pair in tiny_pairs(5, seed=4)]
SEVERAL_ROWS = Execution(token_budget=60)


def results(
    policy: Policy, reference: AdapterDisabled | None = None, execution: Execution = SEVERAL_ROWS
) -> list[Tensor]:
    """Loss and gradients of one step, in several rows."""
    policy.model.zero_grad()
    step = PreferenceStep(policy, reference or AdapterDisabled(policy), Objective())
    loss = step.backward([PAIRS], PairMetrics(0.1), execution)
    return [loss, *(p.grad.clone() for p in policy.model.parameters() if p.grad is not None)]


def assert_close(got: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    assert len(got) == len(expected) > 1
    for value, own in zip(got, expected, strict=True):
        assert (value - own).norm() <= tolerance * own.norm()


@pytest.mark.slow
@pytest.mark.parametrize("family", ATTENTION_FAMILIES)
def test_fused_linears_change_no_step(family: str) -> None:
    model = adapted(family)
    expected = results(Policy(model))
    assert_close(results(Policy(model, fused=FusedLinears(model))), expected, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("family", ATTENTION_FAMILIES)
def test_nor_do_they_lose_more_in_float32(family: str) -> None:
    exact = results(Policy(adapted(family)))
    model = adapted(family, torch.float32)
    plain, fused = results(Policy(model)), results(Policy(model, fused=FusedLinears(model)))
    lost, usual = (
        max(float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)) for found in (fused, plain)
    )
    assert lost <= 3 * usual < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("family", ATTENTION_FAMILIES)
def test_nor_do_fused_norms_and_rotary_embeddings(family: str) -> None:
    """Norms of transformers round to float32 inside, ours do not."""
    model = adapted(family)
    expected = results(Policy(model))
    fused = FusedLayers(model, norms_everywhere=True)
    assert_close(results(Policy(model, fused=fused)), expected, 1e-5)


@pytest.mark.parametrize("offload", [False, True])
def test_recomputed_layers_run_fused(offload: bool) -> None:
    model = adapted("llama")
    expected = results(Policy(model))
    model.enable_input_require_grads()
    model.train()
    allow_recompute(model.get_base_model())
    execution = Execution.treating(60, "offload" if offload else "recompute")
    assert_close(results(Policy(model, fused=FusedLinears(model)), execution=execution), expected, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("tile_tokens", [None, 16])
def test_norms_that_quantize_for_fp8_layers_change_no_bit(tile_tokens: int | None) -> None:
    """`test_quantized_input.py` counts the rows."""
    model = add_adapter(loaded_in_fp8(tiny_model("llama", dtype=torch.bfloat16)), rank=4, seed=0)
    draw(model, 1)
    apart, together = FusedLayers(model, norms_everywhere=True), FusedLayers(model, norms_everywhere=True)
    apart.norms = FusedNorms(model, everywhere=True)
    execution = replace(SEVERAL_ROWS, tile_tokens=tile_tokens)
    expected = results(Policy(model, fused=apart), execution=execution)
    for _ in range(2):
        got = results(Policy(model, fused=together), execution=execution)
        assert len(got) == len(expected) > 1 and all(map(torch.equal, got, expected))


def test_a_reference_of_several_copies_of_the_adapter() -> None:
    model = adapted("qwen2")
    policy, fused = Policy(model), Policy(model, fused=FusedLinears(model))
    reference = SynchronizedAdapter(policy)
    for seed in (2, 3):
        reference.synchronize(0.6)
        model.to(torch.float64)
        draw(model, seed)
    assert len(reference.adapters) == 2
    expected = results(policy, reference)
    assert_close(results(fused, SynchronizedAdapter(fused)), expected, 1e-9)
