"""A run counts which parts run fused and names each that does not in one line, unless it is left on purpose."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_model

from wishbone.fused.coverage import COSTS, LAYER_NORM, NO_GPU, Coverage, PartCoverage, Site
from wishbone.fused.layers import FusedLayers
from wishbone.model.adapter import add_adapter
from wishbone.policy.fused_parts import coverage_of
from wishbone.policy.policy import Policy


def counted(model: Any, *, training: bool = True, **options: Any) -> dict[str, PartCoverage]:
    policy = Policy(model, fused=FusedLayers(model, norms_everywhere=True), **options)
    return {one.part: one for one in coverage_of(policy, training=training).parts}


def adapted(**options: Any) -> Any:
    return get_peft_model(tiny_model("llama"), LoraConfig(r=4, target_modules="all-linear", **options))


def test_parts_are_counted_in_their_order_with_the_most_frequent_reason_first() -> None:
    sites = [Site("norm", str(i), "b" if i else "a") for i in range(3)] + [Site("norm", "3"), Site("attention", "0")]
    coverage = Coverage.of(sites)
    assert coverage.parts == (
        PartCoverage("attention", 1, 1, ()),
        PartCoverage("norm", 4, 1, (("b", 2), ("a", 1))),
    )
    assert coverage.warnings() == ["3 of 4 norms run the model's own code, which is slower: b (2); a (1)."]
    assert coverage.as_json()[1] == {
        "part": "norm",
        "layers": 4,
        "fused": 1,
        "why_not": [{"reason": "b", "layers": 2}, {"reason": "a", "layers": 1}],
    }


def test_a_known_cost_is_said_and_what_was_said_or_is_on_purpose_is_not() -> None:
    (line,) = Coverage.of([Site("rotary embedding", "0", "of this")]).warnings()
    assert line.endswith(COSTS["rotary embedding"])
    left = [Site("norm", "0", LAYER_NORM), Site("MLP", "0", NO_GPU), Site("attention", "0", "said before")]
    assert Coverage.of(left).warnings(said="said before") == []
    assert len(Coverage.of(left).warnings()) == 1


def test_on_a_cpu_layers_are_left_as_they_are_and_the_table_says_so() -> None:
    model = add_adapter(tiny_model("llama"), rank=4)
    coverage = coverage_of(Policy(model))
    counts = {one.part: (one.fused, one.layers) for one in coverage.parts}
    assert counts == {
        "attention": (2, 2),
        "rotary embedding": (0, 2),
        "norm": (0, 5),
        "MLP": (0, 2),
        "linear group": (0, 4),
        "output head": (1, 1),
    }
    assert {reason for one in coverage.parts for reason, _ in one.why_not} == {NO_GPU}
    assert coverage.warnings() == []


def test_a_part_that_was_found_and_not_run_is_not_counted_as_fused() -> None:
    model = add_adapter(tiny_model("llama"), rank=4)
    fused = FusedLayers(model, norms_everywhere=True)
    rotary = [site for site in fused.sites() if site.part == "rotary embedding"]
    assert [site.why_not for site in rotary] == ["their rotary embedding was not called"] * 2
    coverage_of(Policy(model, fused=fused))
    assert all(site.why_not is None for site in fused.sites())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"lora_dropout": 0.1}, "dropout; set it to 0"),
        ({"use_dora": True}, "variant of LoRA, such as DoRA"),
        ({"lora_bias": True}, "more than add s B A x"),
    ],
)
def test_adapters_that_do_more_are_named(options: dict[str, Any], reason: str) -> None:
    counts = counted(adapted(**options))
    for part, layers in (("MLP", 2), ("linear group", 8)):
        assert counts[part].fused == 0 and counts[part].layers == layers
        ((said, count),) = counts[part].why_not
        assert reason in said and count == layers
    assert counts["norm"].fused == 5 and counts["rotary embedding"].fused == 2


def test_dropout_counts_in_training_only() -> None:
    model = adapted(lora_dropout=0.1)
    assert counted(model, training=False)["linear group"].fused == 8
    assert counted(model)["linear group"].fused == 0


def test_weights_that_are_trained_are_named() -> None:
    counts = counted(tiny_model("llama"))
    assert "linear group" not in counts, "without an adapter there are none"
    for part in ("norm", "MLP"):
        assert counts[part].fused == 0 and {reason for reason, _ in counts[part].why_not} == {
            "their weights are trained"
        }
    assert counts["rotary embedding"].fused == counts["attention"].fused == 2


def test_layers_with_hooks_or_another_forward_are_named() -> None:
    model = add_adapter(tiny_model("llama"), rank=4)
    first, second = model.base_model.model.model.layers
    first.input_layernorm.register_forward_hook(lambda *_: None)
    own = second.input_layernorm.forward
    second.input_layernorm.forward = lambda x: own(x)
    first.mlp.forward = lambda x, forward=first.mlp.forward: forward(x)
    counts = counted(model)
    assert dict(counts["norm"].why_not) == {
        "hooks look at their inputs and outputs": 1,
        "something else has replaced their forward": 1,
    }
    assert counts["MLP"].why_not == (("something else has replaced their forward", 1),)


def test_other_adapters_of_peft_and_heads_with_an_adapter_are_named() -> None:
    from peft import IA3Config

    model = get_peft_model(tiny_model("llama"), IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    assert counted(model)["linear group"].why_not == (("PEFT's Linear has no fused form", 2),)
    head = get_peft_model(tiny_model("llama"), LoraConfig(r=4, target_modules=["q_proj", "lm_head"]))
    assert counted(head)["output head"].fused == 0


def test_counting_leaves_weights_gradients_mode_and_random_state_as_they_are() -> None:
    model = adapted(lora_dropout=0.5).eval()
    before, state = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()
    counted(model)
    assert torch.equal(torch.get_rng_state(), state) and not model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
