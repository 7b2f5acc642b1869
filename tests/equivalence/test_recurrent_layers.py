"""Rows in which recurrent layers start branches from their stem's state, against two plain sequences a pair."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from peft import PeftModel
from tiny import tiny_model
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedModel

from wishbone.data.batch import TokenizedPair
from wishbone.engine.execution import EVERYTHING, NOTHING, Execution
from wishbone.engine.step import PreferenceStep
from wishbone.fused.layers import FusedLayers
from wishbone.fused.lockstep import Lockstep
from wishbone.model.adapter import add_adapter
from wishbone.policy.activations import allow_recompute
from wishbone.policy.capability import choose_form
from wishbone.policy.fused_parts import coverage_of
from wishbone.policy.policy import Policy
from wishbone.preference.metrics import PairMetrics
from wishbone.preference.objective import Objective
from wishbone.reference.lockstep import why_apart
from wishbone.reference.reference import AdapterDisabled, ReferencePolicy

KINDS = ["lfm2", "qwen3_5_text", "bamba"]
"""One family for each kind of layer: short convolution, gated delta rule, Mamba-2."""
OTHERS = [
    "lfm2_moe",
    "qwen3_next",
    "olmo_hybrid",
    "kimi_linear",
    "granitemoehybrid",
    "nemotron_h",
    "falcon_h1",
    "mamba2",
    "zamba2",
    "jamba",
    "mamba",
    "falcon_mamba",
    "minimax",
]
TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-5}


def pairs(vocabulary: int) -> list[TokenizedPair]:
    """Prompts shorter than a convolution's taps, none at all, branches of one token, and ordinary pairs."""
    generator = torch.Generator().manual_seed(3)

    def ids(count: int) -> list[int]:
        return torch.randint(0, vocabulary, (count,), generator=generator).tolist()

    def pair(stem: int, chosen: int, rejected: int) -> TokenizedPair:
        prompt, first = ids(stem), ids(1)[0]
        one, other = [first, *ids(chosen - 1)], [(first + 1) % vocabulary, *ids(rejected - 1)]
        return TokenizedPair(prompt + one, prompt + other, stem, stem)

    return [pair(11, 6, 9), pair(1, 5, 1), pair(2, 1, 7), pair(9, 1, 1), pair(0, 4, 6), pair(20, 13, 2)]


def adapted(family: str, dtype: torch.dtype, **sizes: object) -> PeftModel:
    model = add_adapter(tiny_model(family, dtype, **sizes), rank=4, alpha=8, seed=0).to(dtype)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
    return model.eval()


def margins(model: PreTrainedModel | PeftModel) -> Tensor:
    """Difference of log-probabilities of each pair, from plain sequences, one at a time, in transformers alone."""
    found = []
    for pair in pairs(model.config.vocab_size):
        total = []
        for ids, start in pair.sequences():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
            logps = torch.log_softmax(logits, -1)
            total.append(sum(logps[t - 1, ids[t]] for t in range(max(start, 1), len(ids))) + 0 * logps.sum())
        found.append(total[0] - total[1])
    return torch.stack(found)


def plain_loss(model: PreTrainedModel | PeftModel) -> Tensor:
    """The mean over pairs of eq. 7 of arXiv 2305.18290; without an adapter the reference is left out."""
    difference = margins(model)
    if isinstance(model, PeftModel):
        with torch.no_grad(), model.disable_adapter():
            reference = margins(model)
        difference = difference - reference
    return torch.log1p(torch.exp(-0.1 * difference)).mean()


def gradients(model: nn.Module) -> Tensor:
    found = [p.grad.flatten().double() for p in model.parameters() if p.requires_grad and p.grad is not None]
    model.zero_grad()
    return torch.cat(found)


class _ZeroReference(ReferencePolicy):
    def logps(self, batch: Any, execution: object = None) -> Tensor:
        return torch.zeros(2 * len(batch.pairs))


def step_of(policy: Policy) -> PreferenceStep:
    reference = AdapterDisabled(policy) if isinstance(policy.model, PeftModel) else _ZeroReference()
    return PreferenceStep(policy, reference, Objective())


def shared(policy: Policy, execution: Execution) -> tuple[float, Tensor]:
    loss = step_of(policy).backward([pairs(policy.causal_lm.config.vocab_size)], PairMetrics(0.1), execution)
    return float(loss), gradients(policy.model)


@contextmanager
def float64_inside(dtype: torch.dtype) -> Iterator[None]:
    """Within it, transformers computes recurrences and norms of float64 models in float64, not in float32."""
    with pytest.MonkeyPatch.context() as patch:
        if dtype == torch.float64:
            patch.setattr(torch, "float32", torch.float64)
            patch.setattr(Tensor, "float", Tensor.double)
        yield


def skip_what_cannot_be_float64(family: str, dtype: torch.dtype) -> None:
    """The rotary embedding of these families in transformers 5.17 fails where `float` means float64."""
    if (
        dtype == torch.float64
        and family in ("bamba", "falcon_h1")
        and Version(transformers.__version__) < Version("5.24")
    ):
        pytest.skip(f"transformers {transformers.__version__} cannot compute {family} in float64 throughout")


def assert_equal_to_plain_sequences(
    model: PreTrainedModel | PeftModel, dtype: torch.dtype, layout_as_mask: bool = False
) -> None:
    with float64_inside(dtype):
        expected = plain_loss(model)
        expected.backward()
        expected_gradients = gradients(model)
        for budget in (25, 10**6):  # a pair a row, all pairs in one
            loss, found = shared(Policy(model, layout_as_mask=layout_as_mask), Execution(budget))
            assert loss == pytest.approx(expected.item(), rel=TOLERANCE[dtype])
            assert (found - expected_gradients).norm() <= TOLERANCE[dtype] * expected_gradients.norm()


@pytest.mark.parametrize("trained", ["LoRA", "all weights"])
@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", KINDS)
@pytest.mark.slow
def test_loss_and_all_gradients_are_those_of_plain_sequences(family: str, dtype: torch.dtype, trained: str) -> None:
    skip_what_cannot_be_float64(family, dtype)
    model = adapted(family, dtype) if trained == "LoRA" else tiny_model(family, dtype)
    capability = choose_form(model)
    assert capability.form == "shared_prefix", capability.reason
    assert_equal_to_plain_sequences(model, dtype)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.slow
@pytest.mark.parametrize("family", OTHERS)
def test_other_families_with_these_layers(family: str) -> None:
    if family not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {family}")
    skip_what_cannot_be_float64(family, torch.float64)
    model = adapted(family, torch.float64)
    capability = choose_form(model)
    assert capability.form == "shared_prefix", capability.reason
    assert_equal_to_plain_sequences(model, torch.float64, capability.layout_as_mask)
    allow_recompute(model.get_base_model())
    policy = Policy(model.train(), layout_as_mask=capability.layout_as_mask)
    kept, recomputed = (shared(policy, Execution(60, room)) for room in (EVERYTHING, NOTHING))
    assert kept[0] == recomputed[0] and torch.equal(kept[1], recomputed[1])


@pytest.mark.parametrize("family", KINDS)
def test_recomputed_layers_are_kept_ones_bit_by_bit(family: str) -> None:
    model = adapted(family, torch.float32)
    allow_recompute(model.get_base_model())
    policy = Policy(model.train())
    kept = shared(policy, Execution(60, EVERYTHING))
    recomputed = shared(policy, Execution(60, NOTHING))
    assert kept[0] == recomputed[0] and torch.equal(kept[1], recomputed[1])


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.slow
def test_policy_and_reference_in_one_pass_keep_states_of_both(family: str) -> None:
    model = adapted(family, torch.float64)
    allow_recompute(model.get_base_model())
    policy = Policy(model.train(), fused=FusedLayers(model, norms_everywhere=True))
    step = step_of(policy)
    assert isinstance(step.reference, AdapterDisabled) and why_apart(policy, step.reference) is None
    seen = []
    for module in policy.recurrence.covered:
        module.register_forward_hook(lambda _module, _args, output: seen.append(type(output)))
    for execution in (Execution(60, EVERYTHING), Execution(60, NOTHING)):
        results = []
        for step.reference.in_lockstep in (False, True):
            loss = step.backward([pairs(model.config.vocab_size)], PairMetrics(0.1), execution)
            results.append((float(loss), gradients(model)))
        assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
        assert (results[0][1] - results[1][1]).norm() <= 1e-12 * results[0][1].norm()
    assert Lockstep in seen  # the layer ran once for both


@pytest.mark.parametrize("family", KINDS)
def test_layers_are_counted_and_left_as_they_were(family: str) -> None:
    model = adapted(family, torch.float32)
    policy = Policy(model, fused=FusedLayers(model, norms_everywhere=True))
    (counted,) = (part for part in coverage_of(policy, training=False).parts if part.part == "recurrence")
    assert counted.layers == counted.fused == len(policy.recurrence.covered) > 0
    module = next(iter(policy.recurrence.covered))
    with pytest.raises(ZeroDivisionError), policy.running():
        assert "forward" in vars(module)
        raise ZeroDivisionError
    assert "forward" not in vars(module)


def test_a_layer_whose_forward_was_replaced_is_left_alone_and_said() -> None:
    model = tiny_model("lfm2")
    (module,) = Policy(model).recurrence.covered
    module.forward = lambda *args, **kwargs: None
    policy = Policy(model)
    assert not policy.recurrence.covered
    assert set(policy.recurrence.left.values()) == {"something else has replaced their forward"}
