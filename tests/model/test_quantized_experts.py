"""Experts in FP8 and NF4: read from files, trained under adapters, merged; against the values of their codes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from equivalence.test_model_families import gradients, pairs_of, textbook_dpo
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor

from wishbone.engine.execution import Execution
from wishbone.engine.step import PreferenceStep
from wishbone.fused.layers import FusedLayers
from wishbone.model.adapter import add_adapter
from wishbone.model.load import load_model
from wishbone.model.merge import merge_adapter
from wishbone.model.quantization import dequantized, is_quantized
from wishbone.model.quantized_experts import experts_in_values
from wishbone.model.saved_adapter import load_adapter, save_adapter
from wishbone.ops.expert_mlp import FP8Stack, Int8Stack, NF4Stack, QuantizedStack
from wishbone.policy.capability import choose_form
from wishbone.policy.policy import Policy
from wishbone.preference.metrics import PairMetrics
from wishbone.preference.objective import Objective
from wishbone.reference.reference import AdapterDisabled

EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
FORMS: list[tuple[str, type[QuantizedStack], float]] = [
    ("load_in_fp8", FP8Stack, 0.05),
    ("load_in_rotated_int8", Int8Stack, 0.01),
    ("load_in_4bit", NF4Stack, 0.2),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mixture")
    tokenizer = tiny_tokenizer()
    tiny_model("qwen3_moe", hidden_size=64, vocab_size=len(tokenizer)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def loaded(directory: Path, **options: Any) -> Any:
    return load_model(str(directory), device="cpu", **options)[0].eval()


def stacks(model: Any) -> dict[str, Any]:
    return {name: weight for name, weight in model.named_parameters() if isinstance(weight, QuantizedStack)}


@pytest.mark.slow
@pytest.mark.parametrize(("option", "form", "error"), FORMS)
def test_stacks_become_codes_as_they_are_read(
    saved: Path, option: str, form: type[QuantizedStack], error: float
) -> None:
    model, plain = loaded(saved, **{option: True}), loaded(saved)
    found = stacks(model)
    assert set(found) == {name for name, weight in plain.named_parameters() if weight.dim() == 3} and len(found) == 4
    for name, stack in found.items():
        weight = plain.get_parameter(name)
        assert type(stack) is form and not stack.requires_grad and stack.shape == weight.shape
        stored_bytes = sum(getattr(stack, part).nbytes for part in stack.PARTS)
        assert stored_bytes < (0.7 if form is NF4Stack else 1.2) * weight.numel()
        assert 0 < (stack.dense() - weight).norm() < error * weight.norm()
    assert is_quantized(model)
    whole = dequantized(copy.deepcopy(model))
    assert not stacks(whole)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        logits = [one(ids).logits for one in (whole, plain)]
    assert 0 < (logits[0] - logits[1]).norm() < 0.5 * logits[1].norm()


def adapted(model: Any, dtype: torch.dtype) -> PeftModel:
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"], target_parameters=EXPERTS)
    adapted = get_peft_model(model, config).to(dtype)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            scale = 0.2 if "lora_B" in name else 0.3
            parameter.data = (scale * torch.randn(parameter.shape, generator=generator)).to(dtype)
    return adapted.eval()


@pytest.mark.slow
@pytest.mark.parametrize(("family", "form"), [("qwen3_moe", FP8Stack), ("gpt_oss", Int8Stack), ("qwen3_moe", NF4Stack)])
@pytest.mark.parametrize("fused", [True, False])
def test_a_step_is_that_of_the_values(family: str, form: type[QuantizedStack], fused: bool) -> None:
    model = tiny_model(family, hidden_size=64)
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None and weight.dim() == 3:
                module._parameters[name] = torch.nn.Parameter(form.of(weight), requires_grad=False)
    model = adapted(model, torch.float64)
    pairs = pairs_of(model.get_base_model())
    whole = copy.deepcopy(model)
    experts_in_values(whole)
    assert not stacks(whole) and len(stacks(model)) == 4
    expected_loss = textbook_dpo(whole, pairs, beta=0.1)
    expected_loss.backward()
    expected = gradients(whole)

    layers = FusedLayers(model) if fused else None
    policy = Policy(model, form=choose_form(model).form, fused=layers)
    reference = AdapterDisabled(policy)
    reference.in_lockstep = fused
    step = PreferenceStep(policy, reference, Objective())
    loss = float(step.backward([pairs], PairMetrics(0.1), Execution(token_budget=90)))
    if layers is not None:
        assert [site.why_not for site in layers.experts.sites()] == [None, None]
    assert loss == pytest.approx(expected_loss.item(), rel=1e-6)
    assert (gradients(model) - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.slow
def test_adapters_are_saved_reloaded_and_merged(saved: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = add_adapter(loaded(saved, load_in_fp8=True), rank=4, target_modules=["q_proj", *EXPERTS])
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            assert parameter.dtype == torch.float32
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)

    def logits(one: Any) -> Tensor:
        with torch.no_grad():
            found: Tensor = one(torch.arange(3, 40)[None]).logits
        return found

    save_adapter(model, tmp_path / "adapter", tokenizer)
    again = load_adapter(loaded(saved, load_in_fp8=True), tmp_path / "adapter").eval()
    assert torch.equal(logits(again), logits(model))
    merge = merge_adapter(model, tmp_path / "merged", tokenizer, dtype=torch.float32)
    assert merge.quantization is not None and merge.quantization > 0
    whole = load_adapter(loaded(saved), tmp_path / "adapter").eval()
    merged = loaded(tmp_path / "merged")
    assert (logits(merged) - logits(whole)).abs().max() < 1e-3


def test_codes_cannot_be_written_to() -> None:
    stack = FP8Stack.of(torch.randn(2, 4, 32))
    with pytest.raises(NotImplementedError, match="frozen"):
        stack.copy_(torch.zeros(2, 4, 32))
    assert torch.equal(stack[1], stack.dense()[1]) and "FP8Stack" in repr(stack)
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(stack, requires_grad=False)
    assert type(module.to("meta").weight) is FP8Stack and module.weight.codes.is_meta
