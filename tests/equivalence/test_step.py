"""What must not change a step: token budget, accumulation, recomputation; and what it must be at the start."""

from __future__ import annotations

import math

import pytest
import torch
from peft import PeftModel
from tiny import tiny_model, tiny_pairs
from torch import Tensor

from wishbone.data.batch import TokenizedPair, truncated_pair
from wishbone.engine.execution import Execution
from wishbone.engine.step import PreferenceStep
from wishbone.model.adapter import add_adapter
from wishbone.policy.policy import Policy
from wishbone.preference.losses import LOSSES
from wishbone.preference.metrics import PairMetrics
from wishbone.preference.objective import Objective
from wishbone.preference.scores import LossParameters
from wishbone.reference.reference import AdapterDisabled, NoReference


@pytest.fixture
def model() -> PeftModel:
    adapted = add_adapter(
        tiny_model("llama", dtype=torch.float64), rank=4, alpha=8, dropout=0.0, target_modules="all-linear", seed=0
    ).double()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.1
    return adapted


@pytest.fixture
def groups() -> list[list[TokenizedPair]]:
    pairs = [truncated_pair(p, c, r) for p, c, r in tiny_pairs(9, vocab=128, seed=2)]
    return [pairs[:4], pairs[4:6], pairs[6:]]


def run(model: PeftModel, groups: list[list[TokenizedPair]], budget: int, objective: Objective) -> tuple[float, Tensor]:
    policy = Policy(model)
    reference = NoReference() if objective.reference_free else AdapterDisabled(policy, ld_alpha=objective.ld_alpha)
    loss = PreferenceStep(policy, reference, objective).backward(groups, PairMetrics(0.1), Execution(budget))
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return float(loss), gradient


def objective(name: str) -> Objective:
    return Objective((name,), parameters=LossParameters(label_smoothing=0.01 if name == "exo_pair" else 0.0))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_any_token_budget_is_any_other(model: PeftModel, groups: list[list[TokenizedPair]], name: str) -> None:
    results = [run(model, groups, budget, objective(name)) for budget in (1, 70, 10_000)]
    for loss, gradient in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-12)
        assert (gradient - results[0][1]).norm() <= 1e-10 * results[0][1].norm()


@pytest.mark.parametrize("options", [{"ld_alpha": 0.3}, {"use_weighting": True}, {"losses": ("sigmoid", "sft", "aot")}])
def test_token_budget_with_options(
    model: PeftModel, groups: list[list[TokenizedPair]], options: dict[str, object]
) -> None:
    results = [run(model, groups, budget, Objective(**options)) for budget in (1, 10_000)]  # type: ignore[arg-type]
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    assert (results[0][1] - results[1][1]).norm() <= 1e-10 * results[1][1].norm()


@pytest.mark.parametrize("name", ["sigmoid", "aot", "sft", "cpo"])
def test_accumulated_groups_are_the_mean_of_single_ones(
    model: PeftModel, groups: list[list[TokenizedPair]], name: str
) -> None:
    loss, gradient = run(model, groups, 100, objective(name))
    single = [run(model, [group], 100, objective(name)) for group in groups]
    assert loss == pytest.approx(sum(part[0] for part in single) / 3, rel=1e-12)
    mean = sum(part[1] for part in single) / 3
    assert (gradient - mean).norm() <= 1e-6 * mean.norm()


def test_recomputation_is_bitwise_keeping(model: PeftModel, groups: list[list[TokenizedPair]]) -> None:
    kept = run(model, groups, 100, Objective())
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    recomputed = run(model, groups, 100, Objective())
    assert kept[0] == recomputed[0] and torch.equal(kept[1], recomputed[1])


def test_fresh_adapter_starts_at_ln_2(groups: list[list[TokenizedPair]]) -> None:
    fresh = add_adapter(tiny_model("llama"), rank=4, alpha=8, dropout=0.0, target_modules="all-linear", seed=0)
    metrics = PairMetrics(0.1)
    policy = Policy(fresh)
    loss = PreferenceStep(policy, AdapterDisabled(policy), Objective()).backward(groups, metrics, Execution(100))
    assert float(loss) == pytest.approx(math.log(2), abs=1e-6)
    assert metrics.read()["rewards/margins"] == 0.0


def test_metrics_are_means_over_pairs_and_tokens(model: PeftModel, groups: list[list[TokenizedPair]]) -> None:
    policy = Policy(model)
    step = PreferenceStep(policy, AdapterDisabled(policy), Objective())
    metrics, by_pair = PairMetrics(0.1), []
    step.backward(groups, metrics, Execution(50))
    for pair in (pair for group in groups for pair in group):
        single = PairMetrics(0.1)
        step.evaluate([pair], single, Execution(50))
        by_pair.append((pair, single.read()))
    read = metrics.read()
    for name in ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen"):
        assert read[name] == pytest.approx(sum(m[name] for _, m in by_pair) / len(by_pair)), name
    scored = [len(pair.chosen) - max(pair.chosen_start, 1) for pair, _ in by_pair]
    accuracy = sum(m["mean_token_accuracy"] * n for (_, m), n in zip(by_pair, scored, strict=True)) / sum(scored)
    assert read["mean_token_accuracy"] == pytest.approx(accuracy)
    assert metrics.read() == {}
