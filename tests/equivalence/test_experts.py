"""Experts of mixtures as one function, with adapters on their stacked weights, against plain transformers and PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from equivalence.test_model_families import gradients, pairs_of, textbook_dpo, textbook_logp
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor

from wishbone.engine.execution import EVERYTHING, NOTHING, Execution
from wishbone.engine.step import PreferenceStep
from wishbone.fused.coverage import NO_GPU
from wishbone.fused.layers import FusedLayers
from wishbone.model.merge import merge_adapter
from wishbone.model.saved_adapter import load_adapter, save_adapter
from wishbone.policy.activations import allow_recompute
from wishbone.policy.capability import choose_form
from wishbone.policy.fused_parts import coverage_of
from wishbone.policy.policy import Policy
from wishbone.preference.metrics import PairMetrics
from wishbone.preference.objective import Objective
from wishbone.reference.lockstep import why_apart
from wishbone.reference.reference import AdapterDisabled

EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
FAMILIES = ["qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3", "ernie4_5_moe"]
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5}


def adapted(
    family: str, dtype: torch.dtype = torch.float64, parameters: list[str] | None = None, **sizes: Any
) -> PeftModel:
    """A model with LoRA on attention and on its experts that is no longer fresh."""
    layers = "all-linear" if parameters is None else ["q_proj", "v_proj"]  # PEFT counts experts of some families
    targets = EXPERTS if parameters is None else parameters
    config = LoraConfig(r=3, lora_alpha=6, target_modules=layers, target_parameters=targets)
    model = get_peft_model(tiny_model(family, **sizes), config).to(dtype)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = (0.2 * torch.randn(parameter.shape, generator=generator)).to(dtype)
    return model.eval()


def stepped(model: PeftModel, fused: bool = True, execution: Execution | None = None) -> tuple[float, Tensor]:
    layers = FusedLayers(model, norms_everywhere=False) if fused else None
    policy = Policy(model, form=choose_form(model).form, fused=layers)
    reference = AdapterDisabled(policy)
    if policy.form == "shared_prefix" and fused:
        assert why_apart(policy, reference) is None
        reference.in_lockstep = True
    step = PreferenceStep(policy, reference, Objective())
    pairs = pairs_of(model.get_base_model())
    loss = float(step.backward([pairs], PairMetrics(0.1), execution or Execution(token_budget=90)))
    if layers is not None:
        found = list(layers.experts.sites())
        assert found and all(site.why_not is None for site in found)
    return loss, gradients(model)


@pytest.mark.parametrize(
    ("family", "dtype"), [*((family, torch.float64) for family in FAMILIES), ("qwen3_moe", torch.float32)]
)
@pytest.mark.slow
def test_step_equals_two_plain_sequences(family: str, dtype: torch.dtype) -> None:
    model = adapted(family, dtype)
    expected_loss = textbook_dpo(model, pairs_of(model.get_base_model()), beta=0.1)
    expected_loss.backward()
    assert all(p.grad.norm() > 0 for n, p in model.named_parameters() if ".experts." in n and "lora_" in n)
    expected = gradients(model)
    loss, gradient = stepped(model)
    assert loss == pytest.approx(expected_loss.item(), rel=TOLERANCE[dtype])
    assert (gradient - expected).norm() <= TOLERANCE[dtype] * expected.norm()


@pytest.mark.parametrize("parameters", [[], EXPERTS[:1], EXPERTS[1:]], ids=["frozen", "up", "down"])
def test_adapters_on_one_of_the_weights_or_on_none(parameters: list[str]) -> None:
    model = adapted("qwen3_moe", parameters=parameters, hidden_size=64, moe_intermediate_size=64)  # A or B by size: no
    expected, own = stepped(model, fused=False)
    loss, gradient = stepped(model)
    assert loss == pytest.approx(expected, rel=1e-9) and (gradient - own).norm() <= 1e-9 * own.norm()


@pytest.mark.parametrize("execution", [Execution(60, EVERYTHING), Execution(60, NOTHING, offload="always")], ids=str)
def test_kept_recomputed_and_offloaded_layers_give_the_same(execution: Execution) -> None:
    model = adapted("qwen3_moe")
    expected, own = stepped(model, fused=False)
    model.train()
    allow_recompute(model.get_base_model())
    model.enable_input_require_grads()
    loss, gradient = stepped(model, execution=execution)
    assert loss == pytest.approx(expected, rel=1e-9) and (gradient - own).norm() <= 1e-9 * own.norm()


def test_a_small_adapter_is_not_lost_in_bfloat16() -> None:
    """PEFT rounds W + s B A to bfloat16 at every call, so much of it is lost there."""
    model = adapted("qwen3_moe", torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float() * (3e-3 if "lora_B" in name else 1.0)
    experts = model.get_base_model().model.layers[0].mlp.experts
    generator = torch.Generator().manual_seed(0)
    x, share = (torch.randn(2400, n, generator=generator).bfloat16() for n in (32, 2))
    chosen = torch.rand(2400, 4, generator=generator).topk(2).indices

    @torch.no_grad()
    def added(layer: Any) -> Tensor:
        """What the adapter adds to the output."""
        before = layer(x.to(layer_dtype), chosen, share.to(layer_dtype)).double()
        with model.disable_adapter():
            return before - layer(x.to(layer_dtype), chosen, share.to(layer_dtype)).double()

    layer_dtype = torch.bfloat16
    peft = added(experts)
    with FusedLayers(model).running():
        ours = added(experts)
    layer_dtype = torch.float64
    exact = added(model.double().get_base_model().model.layers[0].mlp.experts)
    kept = [float((found * exact).sum() / exact.square().sum()) for found in (ours, peft)]
    assert abs(kept[0] - 1) < 0.2 and kept[1] < 0.7


def _logps(model: PeftModel, adapter: bool) -> list[float]:
    context = torch.no_grad() if adapter else model.disable_adapter()
    with context, torch.no_grad():
        return [
            float(textbook_logp(model, ids, start))
            for pair in pairs_of(model.get_base_model())
            for ids, start in pair.sequences()
        ]


def test_saved_in_pefts_format_reloaded_and_merged(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = adapted("qwen3_moe", torch.float32, vocab_size=len(tokenizer))
    before = _logps(model, True)
    save_adapter(model, tmp_path / "adapter", tokenizer)
    base = tiny_model("qwen3_moe", vocab_size=len(tokenizer))
    again = load_adapter(base, tmp_path / "adapter").eval()
    assert _logps(again, True) == pytest.approx(before, abs=1e-6)
    alone = PeftModel.from_pretrained(tiny_model("qwen3_moe", vocab_size=len(tokenizer)), tmp_path / "adapter")
    assert _logps(alone.eval(), True) == pytest.approx(before, abs=1e-6)
    merge_adapter(model, tmp_path / "merged", tokenizer, dtype=torch.float32)
    merged = type(base).from_pretrained(tmp_path / "merged", experts_implementation="eager").eval()
    assert not any("lora" in name for name in merged.state_dict())
    with torch.no_grad():
        found = [float(textbook_logp(merged, ids, s)) for pair in pairs_of(merged) for ids, s in pair.sequences()]
    assert found == pytest.approx(before, abs=1e-4)


def test_what_runs_its_own_forward_is_named() -> None:
    def reason(model: Any, **changes: Any) -> tuple[tuple[str, int], ...]:
        policy = Policy(model, fused=FusedLayers(model))
        return next(one.why_not for one in coverage_of(policy).parts if one.part == "experts")

    model = adapted("qwen3_moe", torch.float32)
    assert reason(model) == ()
    experts = model.get_base_model().model.layers[0].mlp.experts
    handle = experts.register_forward_hook(lambda *_: None)
    assert reason(model) == (("hooks look at their inputs and outputs", 1),)
    handle.remove()
    model.get_base_model().model.layers[1].mlp.experts.get_base_layer().down_proj.requires_grad_()
    assert reason(model) == (("their weights are trained", 1),)
    policy = Policy(model)
    assert next(one.why_not for one in coverage_of(policy).parts if one.part == "experts") == ((NO_GPU, 2),)
