"""Kept, recomputed and offloaded activations give one gradient; what is noted on a model is what the trainer does."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_model, tiny_pairs
from trainer.preference_runs import adapter, run

from wishbone import DPOConfig, DPOTrainer
from wishbone.data.batch import TokenizedPair
from wishbone.engine.execution import EVERYTHING, NOTHING, Execution, Room
from wishbone.policy import activations
from wishbone.policy.activations import (
    activations_of_row,
    allow_recompute,
    checkpointed_layers,
    choose_activations,
    chosen_activations,
    drawing_nothing,
)
from wishbone.policy.policy import Policy

PAIRS = [TokenizedPair(p + c, p + r, len(p), len(p)) for p, c, r in tiny_pairs(4)]


def gradient(room: Room | None, offload: str = "never") -> torch.Tensor:
    torch.manual_seed(0)
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=3, init_lora_weights=False))
    if room is not None:
        allow_recompute(model.get_base_model())
    policy, execution = Policy(model.train()), Execution(10**6, room, offload=offload)
    with policy.running(execution):
        policy.token_scores(policy.collate(PAIRS, execution), execution).logps.sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_every_treatment_has_the_same_gradient_to_the_bit():
    kept = gradient(None)
    assert torch.equal(kept, gradient(EVERYTHING))
    assert torch.equal(kept, gradient(NOTHING))
    assert torch.equal(kept, gradient(NOTHING, "always"))
    assert torch.equal(kept, gradient(Room(total=1500.0, base=1.0, layer=10.0)))


def test_a_row_keeps_the_layers_that_fit_the_last_ones_first():
    model = tiny_model("llama", num_hidden_layers=4)
    layers, execution = checkpointed_layers(model), Execution(10**6, Room(total=1000.0, base=1.0, layer=3.0))
    recomputed = {}
    for tokens in (50, 76, 77, 100, 143, 250, 1000, 1001):
        with activations_of_row(layers, tokens, execution):
            recomputed[tokens] = [layer.gradient_checkpointing for layer in model.model.layers]
    assert recomputed == {
        50: [False] * 4,  # (1000 - 50) / 150 = 6 layers fit
        76: [False] * 4,
        77: [True, False, False, False],  # (1000 - 77) / 231 = 3.996
        100: [True, False, False, False],
        143: [True, True, True, False],  # (1000 - 143) / 429 = 1.998
        250: [True, True, True, False],
        1000: [True] * 4,
        1001: [True] * 4,
    }


def test_layers_that_the_owner_treats_are_left_alone():
    model = tiny_model("llama", num_hidden_layers=4)
    model.model.layers[2].gradient_checkpointing = True
    with activations_of_row(checkpointed_layers(model), 10**6, Execution(10)):
        assert [layer.gradient_checkpointing for layer in model.model.layers] == [False, False, True, False]


@pytest.mark.parametrize(
    ("offload", "room", "moved"),
    [
        ("never", NOTHING, False),
        ("always", NOTHING, True),
        ("always", EVERYTHING, False),  # nothing is recomputed
        ("as needed", NOTHING, False),
        ("as needed", Room(total=100.0, base=1.0, layer=1.0), False),
        ("as needed", Room(total=99.0, base=1.0, layer=1.0), True),  # does not fit even with every layer recomputed
    ],
)
def test_inputs_wait_in_host_memory_where_they_must(
    offload: str, room: Room, moved: bool, monkeypatch: pytest.MonkeyPatch
):
    entered = []
    monkeypatch.setattr(activations, "offloaded_activations", lambda: entered.append(1) or nullcontext())
    with activations_of_row(checkpointed_layers(tiny_model("llama")), 100, Execution(100, room, offload)):
        assert bool(entered) is moved


def test_layers_that_draw_nothing_are_recomputed_without_random_numbers(monkeypatch: pytest.MonkeyPatch):
    expected = gradient(NOTHING)
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=3))
    allow_recompute(model.get_base_model())
    layers = checkpointed_layers(model)
    before = [vars(layer).copy() for layer in layers]
    with drawing_nothing(layers):
        assert all(vars(layer) != own for layer, own in zip(layers, before, strict=True))
    assert [vars(layer) for layer in layers] == before
    asked: list[int] = []
    monkeypatch.setattr(Policy, "backbone", _drawing_nothing(Policy.backbone, asked))
    assert torch.equal(gradient(NOTHING), expected) and not asked


def _drawing_nothing(backbone, asked: list[int]):
    state = torch.get_rng_state

    def run(policy: Policy, *args: Any):
        with drawing_nothing(policy.layers), pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "get_rng_state", lambda: asked.append(1) or state())
            return backbone(policy, *args)

    return run


def test_what_is_noted_on_a_model_is_found_through_its_adapter():
    model = tiny_model("llama")
    assert chosen_activations(model) is None
    choose_activations(model, "offload")
    assert chosen_activations(get_peft_model(model, LoraConfig(r=2))) == "offload"


@pytest.mark.slow
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
