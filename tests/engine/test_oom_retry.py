"""A step that runs out of memory is computed again with less, and gives the same loss, gradients and metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_model, tiny_pairs

from wishbone.data.batch import TokenizedPair
from wishbone.engine.execution import SMALL_HEAD_CHUNK, SMALL_TILE, UNLIMITED, Execution, Room
from wishbone.engine.oom_retry import backward_that_fits
from wishbone.engine.step import PreferenceStep
from wishbone.policy.activations import allow_recompute
from wishbone.policy.policy import Policy
from wishbone.preference.metrics import PairMetrics
from wishbone.preference.objective import Objective
from wishbone.reference.reference import AdapterDisabled

PAIRS = [TokenizedPair(p + c, p + r, len(p), len(p)) for p, c, r in tiny_pairs(8, seed=4)]
GROUPS = [PAIRS[:4], PAIRS[4:]]
LONGEST = max(pair.row_tokens for pair in PAIRS)
TOKENS = sum(pair.row_tokens for pair in PAIRS)
PLENTY = Execution(10_000, Room(1e9, 1.0, 1.0), offload="as needed")

Holds = Callable[[Execution], int]


class SmallPolicy(Policy):
    """A policy whose device holds rows of so many tokens, depending on how they are computed."""

    holds: Holds

    def token_scores(self, batch, execution=UNLIMITED, **options):
        scores = super().token_scores(batch, execution, **options)
        if torch.is_grad_enabled() and batch.tokens > self.holds(execution):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return scores


def step_for(holds: Holds) -> PreferenceStep:
    torch.manual_seed(0)
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=3, init_lora_weights=False))
    allow_recompute(model.get_base_model())
    policy = SmallPolicy(model.train())
    policy.holds = holds
    return PreferenceStep(policy, AdapterDisabled(policy), Objective())


def outcome(
    step: PreferenceStep, execution: Execution = PLENTY
) -> tuple[float, torch.Tensor, dict[str, float], Execution]:
    metrics = PairMetrics(0.1)
    trained = [p for p in step.policy.model.parameters() if p.requires_grad]
    loss, execution = backward_that_fits(step, GROUPS, metrics, execution, torch.Tensor.backward, trained)
    gradient = torch.cat([p.grad.flatten() for p in step.policy.model.parameters() if p.grad is not None])
    return float(loss), gradient, metrics.read(), execution


def test_rows_get_smaller_until_they_fit(caplog: pytest.LogCaptureFixture):
    whole = outcome(step_for(lambda execution: 10**9))
    assert whole[3] is PLENTY
    tight = step_for(lambda execution: 2 * LONGEST)
    with caplog.at_level(logging.WARNING):
        loss, gradient, metrics, fitted = outcome(tight)
    assert loss == pytest.approx(whole[0], rel=1e-6)
    torch.testing.assert_close(gradient, whole[1], rtol=1e-4, atol=1e-7)
    assert metrics == pytest.approx(whole[2], rel=1e-5)
    assert LONGEST <= fitted.token_budget < TOKENS
    assert fitted.offload == "as needed", "shorter rows were enough"
    said = [record.message for record in caplog.records]
    assert said[:3] == [
        f"Memory ran out: a row of {TOKENS} tokens now keeps 1 of 2 layers. The result is the same.",
        f"Memory ran out: a row of {TOKENS} tokens now keeps 0 of 2 layers. The result is the same.",
        f"Memory ran out: rows now have at most {TOKENS // 2} tokens. The result is the same.",
    ]
    assert said[-1] == f"Memory ran out: rows now have at most {fitted.token_budget} tokens. The result is the same."
    caplog.clear()
    for parameter in tight.policy.model.parameters():
        parameter.grad = None
    assert outcome(tight, fitted)[3] is fitted
    assert not caplog.records, "what helped stays"


@pytest.mark.slow
def test_host_memory_comes_late_and_with_it_smaller_pieces():
    step = step_for(lambda execution: 10**9 if execution.offload == "always" else 1)
    whole = outcome(step_for(lambda execution: 10**9))
    loss, gradient, _, fitted = outcome(step)
    assert loss == pytest.approx(whole[0], rel=1e-6)
    torch.testing.assert_close(gradient, whole[1], rtol=1e-4, atol=1e-7)
    assert (fitted.head_chunk, fitted.tile_tokens) == (SMALL_HEAD_CHUNK, SMALL_TILE)
    assert fitted.token_budget == LONGEST


@pytest.mark.slow
def test_a_pair_that_does_not_fit_alone_ends_the_run():
    with pytest.raises(torch.OutOfMemoryError):
        outcome(step_for(lambda execution: 1))


def test_other_errors_and_gradients_that_cannot_be_repeated_pass():
    asked = []
    step = step_for(lambda execution: asked.append(execution) or 1)
    for parameter in step.policy.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    with pytest.raises(torch.OutOfMemoryError):
        outcome(step)
    assert asked == [PLENTY]
