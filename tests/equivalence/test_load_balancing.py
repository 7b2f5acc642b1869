"""The auxiliary loss of mixtures of experts in the step, against plain sequences and transformers' own function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from equivalence.test_model_families import gradients, textbook_dpo, with_trained_adapter
from peft import PeftModel
from tiny import tiny_model, tiny_pairs
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from wishbone.data.batch import PlainBatch, TokenizedPair, truncated_pair
from wishbone.engine.execution import NOTHING, Execution, Room
from wishbone.engine.step import PreferenceStep
from wishbone.policy.auxiliary_loss import NoAuxiliaryLoss, load_balancing_of
from wishbone.policy.policy import Policy
from wishbone.preference.load_balancing import LoadBalancing
from wishbone.preference.metrics import PairMetrics
from wishbone.preference.objective import Objective
from wishbone.reference.reference import AdapterDisabled

FAMILIES = ["mixtral", "qwen3_moe", "olmoe", "granitemoe", "minimax_m2", "ernie4_5_moe"]
COEFFICIENT = 0.5

OLD = transformers.__version__.startswith("5.17.")
RECORDED = [family for family in FAMILIES if not (OLD and family == "granitemoe")]
"""Families of which transformers returns router logits."""


def model_of(family: str, dtype: torch.dtype, *, router: bool) -> PeftModel:
    """A model with an adapter whose output is not zero; with `router`, the routers' matrices are trained, too."""
    model = with_trained_adapter(tiny_model(family, dtype=dtype), dtype)
    for name, parameter in model.named_parameters():
        if router and (".gate." in name or ".router." in name):
            parameter.requires_grad_()
    return model


def groups_of(model: PeftModel) -> list[list[TokenizedPair]]:
    pairs = [truncated_pair(p, c, r) for p, c, r in tiny_pairs(5, vocab=128, seed=6)]
    return [pairs[:3], pairs[3:]]


def auxiliary(model: PeftModel, group: list[TokenizedPair]) -> Tensor:
    """transformers' function on plain sequences of a whole group, padded to the longest."""
    batch = PlainBatch.from_pairs(group)
    output = model.get_base_model().base_model(**batch.model_inputs, use_cache=False, output_router_logits=True)
    config = model.config
    experts = output.router_logits[0].shape[-1]
    return load_balancing_loss_func(output.router_logits, experts, config.num_experts_per_tok, batch.attention_mask)


def expected(model: PeftModel, groups: list[list[TokenizedPair]]) -> tuple[float, Tensor, float]:
    losses, terms = [], []
    for group in groups:
        terms.append(auxiliary(model, group))
        losses.append(textbook_dpo(model, group, beta=0.1) + COEFFICIENT * terms[-1].double())
    loss = torch.stack(losses).mean()
    loss.backward()
    return loss.item(), gradients(model), float(torch.stack(terms).mean().detach())


def got(
    model: PeftModel,
    groups: list[list[TokenizedPair]],
    execution: Execution,
    *,
    form: Any = "shared_prefix",
    **options: Any,
) -> tuple[float, Tensor, float]:
    policy = Policy(model, form=form)
    term = LoadBalancing(COEFFICIENT, model.config.num_experts_per_tok)
    step = PreferenceStep(policy, AdapterDisabled(policy), Objective(load_balancing=term, **options))
    metrics = PairMetrics(0.1)
    loss = step.backward(groups, metrics, execution)
    return float(loss), gradients(model), metrics.read()["aux_loss"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "dtype"), [*((family, torch.float64) for family in RECORDED), ("qwen3_moe", torch.float32)]
)
def test_step_equals_plain_sequences(family: str, dtype: torch.dtype) -> None:
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-5}[dtype]
    model = model_of(family, dtype, router=dtype == torch.float64)
    groups = groups_of(model)
    loss, gradient, term = expected(model, groups)
    for budget in (1, 60, 10_000):  # groups over several rows, parts of groups in a row, all groups in one row
        own_loss, own_gradient, own_term = got(model, groups, Execution(budget))
        assert own_loss == pytest.approx(loss, rel=tolerance)
        assert own_term == pytest.approx(term, rel=tolerance)
        assert (own_gradient - gradient).norm() <= tolerance * gradient.norm()
    own_loss, own_gradient, _ = got(model, groups, Execution(60), form="plain")
    assert own_loss == pytest.approx(loss, rel=tolerance)
    assert (own_gradient - gradient).norm() <= tolerance * gradient.norm()


@pytest.mark.slow
def test_kept_recomputed_and_offloaded_layers_give_the_same() -> None:
    model = model_of("qwen3_moe", torch.float64, router=True)
    groups = groups_of(model)
    kept = got(model, groups, Execution(60))
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    for room in (NOTHING, Room(total=61.0, base=0.0, layer=1.0)):  # no layer kept, one of two
        for offload in ("never", "always"):
            recomputed = got(model, groups, Execution(60, room, offload=offload))  # type: ignore[arg-type]
            assert recomputed[0] == kept[0] and torch.equal(recomputed[1], kept[1]) and recomputed[2] == kept[2]


@pytest.mark.slow
@pytest.mark.parametrize("losses", [("sigmoid",), ("sigmoid", "aot")])
def test_the_term_is_added_whatever_the_loss(losses: tuple[str, ...]) -> None:
    model = model_of("qwen3_moe", torch.float64, router=True)
    groups = groups_of(model)
    policy = Policy(model)
    bare = PreferenceStep(policy, AdapterDisabled(policy), Objective(losses))
    bare_loss, bare_gradient = float(bare.backward(groups, PairMetrics(0.1), Execution(60))), gradients(model)
    bare.backward(groups, PairMetrics(0.1), Execution(60))
    term = COEFFICIENT * torch.stack([auxiliary(model, group) for group in groups]).mean()
    term.backward()
    expected = gradients(model)
    assert (expected - bare_gradient).norm() > 1e-3 * expected.norm()
    for budget in (1, 60, 10_000):
        loss, gradient, _ = got(model, groups, Execution(budget), losses=losses)
        assert loss == pytest.approx(bare_loss + float(term.detach()), rel=1e-6)
        assert (gradient - expected).norm() <= 1e-6 * expected.norm()


def test_evaluation_adds_the_term_of_the_group() -> None:
    model = model_of("mixtral", torch.float64, router=False)
    group = groups_of(model)[0]
    policy = Policy(model)
    losses = []
    for term in (None, LoadBalancing(COEFFICIENT, 2)):
        step = PreferenceStep(policy, AdapterDisabled(policy), Objective(load_balancing=term))
        metrics = PairMetrics(0.1)
        losses.append(float(step.evaluate(group, metrics, Execution(30))))
    own = float(auxiliary(model, group).detach())
    assert losses[1] - losses[0] == pytest.approx(COEFFICIENT * own, rel=1e-6)
    assert metrics.read()["aux_loss"] == pytest.approx(own, rel=1e-6)


class TestWhatAModelHas:
    @pytest.mark.parametrize("family", [*RECORDED, "qwen3_next", "gpt_oss"])
    def test_an_auxiliary_loss(self, family: str) -> None:
        model = tiny_model(family)
        assert load_balancing_of(model, 0.1) == LoadBalancing(0.1, 2)

    def test_none_without_routers(self) -> None:
        assert load_balancing_of(tiny_model("qwen3_moe", mlp_only_layers=[0, 1]), 0.1) is None

    def test_none_of_its_own(self) -> None:
        with pytest.raises(NoAuxiliaryLoss, match=r"the model itself computes none|record no logits"):  # 5.24 and 5.17
            load_balancing_of(tiny_model("deepseek_v3"), 0.1)

    @pytest.mark.skipif(OLD, reason="Doge with experts cannot run there")
    def test_none_for_each_token(self) -> None:
        with pytest.raises(NoAuxiliaryLoss, match="one value for each token and expert"):
            load_balancing_of(tiny_model("doge"), 0.1)
