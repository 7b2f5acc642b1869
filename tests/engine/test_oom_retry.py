"""A step that runs out of memory is computed again with less, and gives the same loss, gradients and metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_model, tiny_pairs

from wishbone.data.batch import TokenizedPair
from wishbone.engine.oom_retry import backward_that_fits
from wishbone.engine.step import PreferenceStep
from wishbone.policy.activations import NOTHING, Activations, Room
from wishbone.policy.policy import Policy
from wishbone.preference.metrics import PairMetrics
from wishbone.preference.objective import Objective
from wishbone.reference.reference import AdapterDisabled

PAIRS = [TokenizedPair(p + c, p + r, len(p), len(p)) for p, c, r in tiny_pairs(8, seed=4)]
GROUPS = [PAIRS[:4], PAIRS[4:]]
LONGEST = max(pair.row_tokens for pair in PAIRS)


class SmallPolicy(Policy):
    """A policy whose device holds rows of so many tokens, and more of them when layers are recomputed or offloaded."""

    holds: Callable[[Policy], int] = staticmethod(lambda policy: 10**9)

    def token_scores(self, batch, *, statistics=True):
        scores = super().token_scores(batch, statistics=statistics)
        if torch.is_grad_enabled() and batch.tokens > type(self).holds(self):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return scores


def step_for(holds: Callable[[Policy], int]) -> PreferenceStep:
    torch.manual_seed(0)
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=3, init_lora_weights=False))

    class Limited(SmallPolicy):
        pass

    Limited.holds = staticmethod(holds)
    activations = Activations(model.get_base_model(), Room(1e9, 1.0, 1.0), offload="as needed")
    policy = Limited(model.train(), activations=activations)
    return PreferenceStep(policy, AdapterDisabled(policy), Objective(), token_budget=10_000)


def outcome(step: PreferenceStep) -> tuple[float, torch.Tensor, dict[str, float]]:
    metrics = PairMetrics(0.1)
    trained = [p for p in step.policy.model.parameters() if p.requires_grad]
    loss = backward_that_fits(step, GROUPS, metrics, torch.Tensor.backward, trained)
    gradient = torch.cat([p.grad.flatten() for p in step.policy.model.parameters() if p.grad is not None])
    return float(loss), gradient, metrics.read()


def test_rows_get_smaller_until_they_fit(caplog: pytest.LogCaptureFixture):
    whole = outcome(step_for(lambda policy: 10**9))
    tight = step_for(lambda policy: 2 * LONGEST)
    with caplog.at_level(logging.WARNING):
        loss, gradient, metrics = outcome(tight)
    assert loss == pytest.approx(whole[0], rel=1e-6)
    torch.testing.assert_close(gradient, whole[1], rtol=1e-4, atol=1e-7)
    assert metrics == pytest.approx(whole[2], rel=1e-5)
    assert tight.policy.activations.room is NOTHING
    assert LONGEST <= tight.token_budget < sum(pair.row_tokens for pair in PAIRS)
    said = [record.message for record in caplog.records]
    tokens = sum(pair.row_tokens for pair in PAIRS)
    assert said[:3] == [
        f"Memory ran out; of a row of {tokens} tokens 1 of 2 layers are kept from now on. The result is the same.",
        f"Memory ran out; of a row of {tokens} tokens 0 of 2 layers are kept from now on. The result is the same.",
        "Memory ran out; activations of all layers are recomputed from now on. The result is the same.",
    ]
    assert said[-1] == f"Memory ran out; rows now have at most {tight.token_budget} tokens. The result is the same."
    caplog.clear()
    outcome(tight)
    assert not caplog.records, "what helped stays"


def test_host_memory_comes_last_and_with_it_smaller_pieces():
    step = step_for(lambda policy: 10**9 if policy.activations.offload == "always" else 1)
    whole = outcome(step_for(lambda policy: 10**9))
    loss, gradient, _ = outcome(step)
    assert loss == pytest.approx(whole[0], rel=1e-6)
    torch.testing.assert_close(gradient, whole[1], rtol=1e-4, atol=1e-7)
    assert step.policy.head_chunk_bytes is not None and step.policy.tile_tokens is not None


def test_a_pair_that_does_not_fit_alone_is_said():
    with pytest.raises(torch.OutOfMemoryError):
        outcome(step_for(lambda policy: 1))


def test_other_errors_and_gradients_that_cannot_be_repeated_pass():
    step = step_for(lambda policy: 1)
    for parameter in step.policy.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    with pytest.raises(torch.OutOfMemoryError):
        outcome(step)
    assert step.token_budget == 10_000
