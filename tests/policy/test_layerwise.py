"""Deep models in 16 bits, whose rounding grows from layer to layer, keep the shared prefix; a wrong mask does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_model

import wishbone.policy.attention_hook as attention_hook
import wishbone.policy.capability as capability
import wishbone.policy.layerwise as layerwise
from wishbone.policy.capability import choose_form, trial_pairs
from wishbone.policy.layerwise import worst_layer
from wishbone.policy.policy import Policy

right = attention_hook.prefix_attention


def blind(query: Any, key: Any, value: Any, layout: Any, **settings: Any) -> Any:
    """Ordinary causal attention, which sees other pairs and the other branch."""
    groups = query.shape[1] // key.shape[1]
    return F.scaled_dot_product_attention(
        query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), is_causal=True
    )


def noisy(*args: Any, **settings: Any) -> Any:
    """Attention that rounds otherwise: in another order, at random."""
    out = right(*args, **settings)
    return out * (1 + torch.finfo(out.dtype).eps * torch.randn_like(out))


def wrong_in_one(*args: Any, **settings: Any) -> Any:
    wrong_in_one.calls += 1
    return (blind if wrong_in_one.calls % 12 == 7 else noisy)(*args, **settings)


wrong_in_one.calls = 0  # type: ignore[attr-defined]


@pytest.fixture
def deep() -> Any:
    torch.manual_seed(0)
    return tiny_model("llama", num_hidden_layers=12, initializer_range=0.3).to(torch.bfloat16)


@pytest.mark.parametrize(
    ("attention", "form"),
    [(noisy, "shared_prefix"), (wrong_in_one, "plain"), (blind, "plain")],
    ids=["noisy", "wrong in one layer", "blind"],
)
@pytest.mark.slow
def test_layers_are_judged_one_at_a_time(deep: Any, attention: Any, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capability, "TOLERANCE", capability.TOLERANCE | {torch.bfloat16: 1e-3})  # as if it were deeper
    monkeypatch.setattr(attention_hook, "prefix_attention", attention)
    assert choose_form(deep).form == form


def test_a_wrong_layer_is_seen_and_rounding_is_small(deep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = trial_pairs(deep.config.vocab_size)
    with torch.no_grad():
        found = []
        for attention in (right, noisy, wrong_in_one):
            monkeypatch.setattr(attention_hook, "prefix_attention", attention)
            found.append(worst_layer(Policy(deep), Policy(deep, form="plain"), pairs))
    same, rounding, wrong = found
    assert same is not None and rounding is not None and wrong is not None
    assert same <= rounding < capability.TOLERANCE_OF_LAYER[torch.bfloat16] < wrong


def test_tokens_that_rounding_sends_to_other_experts_are_no_wrong_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = tiny_model("qwen3_moe", num_hidden_layers=12, num_experts=16, num_experts_per_tok=2).to(torch.bfloat16)
    pairs = trial_pairs(model.config.vocab_size)

    def judged(attention: Any) -> float:
        monkeypatch.setattr(attention_hook, "prefix_attention", attention)
        found = worst_layer(Policy(model), Policy(model, form="plain"), pairs)
        assert found is not None
        return found

    with torch.no_grad():
        rounding, wrong = judged(noisy), judged(wrong_in_one)
        monkeypatch.setattr(layerwise, "part_of", lambda module: None)  # as if routers were not known
        unaware = judged(noisy)
    allowed = capability.TOLERANCE_OF_LAYER[torch.bfloat16]
    assert rounding < allowed < min(unaware, wrong)
