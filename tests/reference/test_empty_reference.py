"""A reference whose adapter adds nothing runs without it, for as long as it adds nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from tiny import tiny_model, tiny_pairs

from wishbone.data.batch import TokenizedPair
from wishbone.model.adapter import copy_adapter
from wishbone.policy.policy import Policy
from wishbone.reference.adapter_switch import AdapterSwitch, EmptyAdapterCheck
from wishbone.reference.reference import AdapterDisabled

PAIRS = [TokenizedPair(p + c, p + r, len(p), len(p)) for p, c, r in tiny_pairs(3)]


def with_reference(**options: Any) -> PeftModel:
    torch.manual_seed(0)
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=3, **options))
    model.add_adapter("ref", model.peft_config["default"])
    copy_adapter(model, "default", "ref")
    return model


def second_factor(model: PeftModel, adapter: str) -> torch.Tensor:
    return next(p for name, p in model.named_parameters() if f"lora_B.{adapter}." in name)


def switches(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every set of adapters that the model is switched to from now on."""
    told: list[Any] = []
    own: Callable[..., Any] = AdapterSwitch.only

    def only(switch: AdapterSwitch, adapters: Any) -> Any:
        told.append(adapters)
        return own(switch, adapters)

    monkeypatch.setattr(AdapterSwitch, "only", only)
    return told


def test_a_fresh_adapter_is_no_reference_of_its_own_until_it_has_values(monkeypatch: pytest.MonkeyPatch):
    model = with_reference()
    policy = Policy(model)
    reference, batch = AdapterDisabled(policy, "ref"), policy.collate(PAIRS)
    told = switches(monkeypatch)
    base = AdapterDisabled(policy).logps(batch)
    with torch.no_grad():
        second_factor(model, "default").fill_(0.5)  # what is trained does not matter
    assert torch.equal(reference.logps(batch), base)
    assert told == []
    with torch.no_grad():
        second_factor(model, "ref").fill_(0.5)
    moved = reference.logps(batch)
    assert told[0] == ["ref"]
    assert not torch.allclose(moved, base)
    with torch.no_grad():
        second_factor(model, "ref").zero_()
    assert torch.equal(reference.logps(batch), base)


@pytest.mark.parametrize(
    ("options", "empty"),
    [
        ({}, True),
        ({"use_rslora": True, "lora_dropout": 0.5}, True),
        ({"init_lora_weights": False}, False),
        ({"use_dora": True}, False),
        ({"modules_to_save": ["lm_head"]}, False),
    ],
)
def test_adapters_that_may_add_something_are_not_empty(options: dict[str, Any], empty: bool):
    model = with_reference(**options)
    assert EmptyAdapterCheck(model).empty(["ref"]) is empty
    assert not EmptyAdapterCheck(model).empty(["no such adapter"])


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_switching_is_exact_and_leaves_everything_as_it_was(family: str, quick: bool, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    model = get_peft_model(tiny_model(family), LoraConfig(r=3, init_lora_weights=False, target_modules="all-linear"))
    for name in ("ref", "other"):
        model.add_adapter(name, model.peft_config["default"])
    policy = Policy(model)
    batch = policy.collate(PAIRS)
    model.base_model.set_adapter(["ref", "other"])
    with torch.no_grad(), policy.running():
        expected = policy.token_scores(batch).logps
    model.set_adapter("default")
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    switch = AdapterSwitch(model)
    assert switch.by_name and switch.by_flag
    if not quick:
        monkeypatch.setattr(switch, "by_name", False)
    with torch.no_grad(), switch.only(["ref", "other"]), policy.running():
        got = policy.token_scores(batch).logps
    assert torch.equal(got, expected)
    assert model.active_adapter == "default"
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trainable
    assert {str(layer.active_adapters) for layer in model.modules() if isinstance(layer, BaseTunerLayer)} == {
        "['default']"
    }
