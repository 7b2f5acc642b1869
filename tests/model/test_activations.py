"""Kept, recomputed and offloaded activations give one gradient; what is noted on a model is what the trainer does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_model, tiny_pairs
from training.preference_runs import adapter, run

from wishbone import DPOConfig, DPOTrainer
from wishbone.data.batch import TokenizedPair
from wishbone.model.activations import Activations, choose_activations, chosen_activations
from wishbone.model.policy import Policy

PAIRS = [TokenizedPair(p + c, p + r, len(p), len(p)) for p, c, r in tiny_pairs(4)]


def gradient(keep_tokens: int | None, offload: bool) -> torch.Tensor:
    torch.manual_seed(0)
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=3, init_lora_weights=False))
    activations = Activations(model.get_base_model(), keep_tokens, offload=offload)
    policy = Policy(model.train(), activations=activations)
    with policy.running():
        policy.token_scores(policy.collate(PAIRS)).logps.sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_every_treatment_has_the_same_gradient_to_the_bit():
    kept = gradient(None, False)
    assert torch.equal(kept, gradient(0, False))
    assert torch.equal(kept, gradient(0, True))
    assert torch.equal(kept, gradient(10**6, True))


def test_what_is_noted_on_a_model_is_found_through_its_adapter():
    model = tiny_model("llama")
    assert chosen_activations(model) is None
    choose_activations(model, "offload")
    assert chosen_activations(get_peft_model(model, LoraConfig(r=2))) == "offload"


@pytest.mark.parametrize("treatment", ["keep", "recompute", "offload"])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_runs_with_every_treatment_are_one_run(tmp_path: Path, treatment: str, checkpointing: bool):
    plain = run(DPOTrainer, DPOConfig, tmp_path, max_steps=2)
    treated = run(
        DPOTrainer, DPOConfig, tmp_path, max_steps=2, activations=treatment, gradient_checkpointing=checkpointing
    )
    assert torch.equal(adapter(plain), adapter(treated))
    layers = treated.model.get_base_model().model.layers
    assert all(layer.gradient_checkpointing is (treatment != "keep") for layer in layers)
