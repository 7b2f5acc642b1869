"""What counts as another run, from the recorded facts alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tiny import tiny_model

from wishbone.trainer.fingerprint import changes, options_of, reference_facts, trained_facts

START, OTHER = {"weights": "SHA-256 aa"}, {"weights": "SHA-256 bb"}


@pytest.mark.parametrize(
    ("before", "now", "differ"),
    [
        ({}, {}, False),
        ({}, START, False),
        (START, {}, False),
        ({}, OTHER, True),
        (OTHER, {}, True),
        (OTHER, START, True),
        (OTHER, OTHER, False),
    ],
)
def test_a_run_keeps_its_reference_however_it_is_named(
    before: dict[str, str], now: dict[str, str], differ: bool
) -> None:
    """Without a model of its own, the reference is the model that training starts from."""
    lines = changes({"model": START, "reference": before}, {"model": START, "reference": now})
    assert [line.startswith("reference: weights was") for line in lines] == [True] * differ


def test_a_reference_of_which_nothing_was_recorded_is_not_compared() -> None:
    assert changes({}, {"model": START, "reference": OTHER}) == []


@pytest.mark.parametrize(("was", "is_now"), [({"peft_type": "LORA", "r": 4}, {}), ({}, {"peft_type": "LORA", "r": 4})])
def test_an_adapter_comes_or_goes_only_in_another_run(was: dict[str, Any], is_now: dict[str, Any]) -> None:
    (line,) = changes({"adapter": was}, {"adapter": is_now})
    assert line == ("adapter was LORA and is none" if was else "adapter was none and is LORA")
    assert changes({"adapter": was}, {"adapter": was}) == []
    assert changes({}, {"adapter": is_now}) == []


@pytest.mark.parametrize("config", [LoraConfig(r=2), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")])
def test_a_reference_with_another_adapter_is_another_reference(config: Any) -> None:
    model = get_peft_model(tiny_model("llama"), config)
    first = reference_facts(model)
    assert changes({"reference": first}, {"reference": reference_facts(model)}) == []
    [*_, parameter] = [p for p in model.parameters() if p.requires_grad]
    parameter.data += 1
    (line,) = changes({"reference": first}, {"reference": reference_facts(model)})
    assert line.startswith("reference: adapters was SHA-256")
    plain = reference_facts(tiny_model("llama"))
    (line,) = changes({"model": plain, "reference": {}}, {"model": plain, "reference": first})
    assert line.startswith("reference: adapters was none")


def test_options_of_an_optimizer_are_those_before_a_schedule_moves_them() -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=2e-3, betas=(0.8, 0.9))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    facts = options_of(optimizer)
    assert facts["optimizer, group 0: lr"] == 2e-3 and facts["optimizer, group 0: betas"] == [0.8, 0.9]
    assert options_of(None) == {}


def test_other_trained_parameters_are_another_run() -> None:
    """As many of the same shapes would take each other's state of the optimizer."""
    facts = []
    for frozen in ("layers.0.", "layers.1."):
        model = tiny_model("llama")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(frozen not in name)
        facts.append(trained_facts(model))
    (line,) = changes({"given": {"trained parameters": facts[0]}}, {"given": {"trained parameters": facts[1]}})
    assert line.startswith(f"given: trained parameters was {facts[0].split()[0]} tensors, SHA-256")
    assert changes({"given": {}}, {"given": {"trained parameters": facts[1]}}) == []
