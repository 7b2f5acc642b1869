"""A reference whose adapter adds nothing runs without it, for as long as it adds nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from tiny import tiny_model, tiny_pairs

from wishbone.data.batch import TokenizedPair
from wishbone.engine.execution import Execution
from wishbone.engine.step import PreferenceStep
from wishbone.model.adapter import copy_adapter
from wishbone.policy.policy import Policy
from wishbone.preference.metrics import PairMetrics
from wishbone.preference.objective import Objective
from wishbone.reference.adapter_switch import AdapterSwitch, EmptyAdapterCheck
from wishbone.reference.cache import CachedReference
from wishbone.reference.reference import AdapterDisabled, ReferencePolicy
from wishbone.reference.store import ReferenceStore

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


def passes_of(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each pass from now on is asked for more than log-probabilities, as the policy's is."""
    seen: list[bool] = []
    own = policy.token_scores

    def token_scores(*arguments: Any, statistics: bool = True, **options: Any) -> Any:
        seen.append(statistics)
        return own(*arguments, statistics=statistics, **options)

    monkeypatch.setattr(policy, "token_scores", token_scores)
    return seen


@pytest.mark.parametrize("ld_alpha", [None, 0.3])
def test_held_out_pairs_take_one_pass_while_the_policy_is_the_reference(
    ld_alpha: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = with_reference().eval()
    policy, metrics = Policy(model), PairMetrics(0.1)
    apart = AdapterDisabled(policy, ld_alpha=ld_alpha)
    kept = CachedReference(apart, policy, ReferenceStore(tmp_path / "store"), lambda: "the same", ld_alpha)
    objective = Objective(ld_alpha=ld_alpha)
    expected = AdapterDisabled.logps(apart, policy.collate(PAIRS))
    seen = passes_of(policy, monkeypatch)

    for reference in (apart, AdapterDisabled(policy, "ref", ld_alpha=ld_alpha), kept, kept):
        scores, ref_logps = PreferenceStep(policy, reference, objective).score(PAIRS, Execution(10_000))
        assert torch.equal(ref_logps, expected) and torch.equal(scores.logps, expected)
        assert seen == [True]
        seen.clear()
    assert (kept.computed, kept.reused) == (3, 3)

    trained = second_factor(model, "default")
    trained.grad = torch.ones_like(trained)
    torch.optim.AdamW([trained], lr=0.5, fused=True).step()  # which changes no version of a tensor
    scores, ref_logps = PreferenceStep(policy, apart, objective).score(PAIRS, Execution(10_000))
    assert torch.equal(ref_logps, expected) and not torch.allclose(scores.logps, expected)
    assert seen == [False, True]
    assert torch.isfinite(PreferenceStep(policy, kept, objective).evaluate(PAIRS, metrics, Execution(10_000)))
    assert seen == [False, True, True]  # its values were stored


def test_dropout_and_whatever_is_trained_beside_the_adapter_keep_two_passes():
    model = with_reference()
    policy = Policy(model)
    reference: ReferencePolicy = AdapterDisabled(policy)
    assert reference.is_the_policy()
    assert not AdapterDisabled(Policy(with_reference(modules_to_save=["lm_head"]))).is_the_policy()
    assert not AdapterDisabled(policy, start_values=object()).is_the_policy()  # type: ignore[arg-type]
    with torch.no_grad():
        second_factor(model, "ref").fill_(0.5)
    assert not AdapterDisabled(policy, "ref").is_the_policy()
    model.train()  # where a step scores its pairs before it knows its coefficients, as with AOT
    calls: list[bool] = []
    policy.token_scores = lambda *_, statistics=True, **__: calls.append(statistics) or 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        PreferenceStep(policy, reference, Objective()).score(PAIRS, Execution(10_000))
    assert calls == [False]
