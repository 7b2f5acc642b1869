"""The auxiliary loss of mixtures of experts in whole runs, beside TRL's."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import transformers
from tiny import tiny_model, tiny_tokenizer

from trainer.preference_runs import chat_pairs
from trainer.side_by_side import assert_on_step, assert_same, lora, trained, trainer
from wishbone.errors import RequestError
from wishbone.preference.load_balancing import LoadBalancing

RECORDED = pytest.mark.skipif(
    transformers.__version__.startswith("5.17."), reason="transformers 5.17 returns no router logits of granitemoe"
)


def of(family: str, **overrides: Any) -> dict[str, Any]:
    return {
        "model": lambda: tiny_model(family, vocab_size=len(tiny_tokenizer()), **overrides),
        "peft": lambda: lora(target_modules=["q_proj"]),
    }


def logged(run: Any, name: str) -> list[float]:
    return [entry[name] for entry in run.state.log_history if name in entry]


def test_runs_are_trls(tmp_path: Path) -> None:
    options = {"router_aux_loss_coef": 0.5, "eval_strategy": "steps", "eval_steps": 3}
    makers = of("qwen3_moe") | {"further": lambda: {"eval_dataset": chat_pairs(5, seed=1)}}
    theirs, ours = trained(tmp_path, options, **makers)
    assert_on_step(ours)
    assert_same(theirs, ours)
    for name in ("aux_loss", "eval_loss", "eval_aux_loss"):
        assert logged(ours, name) == pytest.approx(logged(theirs, name), rel=1e-5) and logged(ours, name)


@pytest.mark.parametrize("family", ["mixtral", pytest.param("granitemoe", marks=RECORDED)])
def test_the_models_own_coefficient_counts(tmp_path: Path, family: str) -> None:
    ours = trainer("ours", tmp_path, **of(family))
    assert_on_step(ours)
    assert ours.preference_step.objective.load_balancing == LoadBalancing(0.001, 2)


def test_a_coefficient_of_zero_turns_it_off(tmp_path: Path) -> None:
    ours = trainer("ours", tmp_path, {"router_aux_loss_coef": 0.0}, **of("mixtral"))
    assert ours.preference_step.objective.load_balancing is None


def test_a_model_without_such_a_loss_is_trained_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="wishbone"):
        ours = trainer("ours", tmp_path, {"max_steps": 1}, **of("llama4_text"))
    assert "trains without it, because the model itself computes none" in caplog.text
    assert ours.train().training_loss == pytest.approx(0.6931472, abs=1e-4)


def test_a_dense_model_of_a_family_with_mixtures_is_told_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="wishbone"):
        ours = trainer("ours", tmp_path, {"max_steps": 1}, **of("granitemoehybrid"))
    assert ours.preference_step.objective.load_balancing is None
    assert "auxiliary" not in caplog.text


def test_a_coefficient_for_a_model_without_such_a_loss_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"router_aux_loss_coef=0.1: .* leave router_aux_loss_coef out"):
        trainer("ours", tmp_path, {"router_aux_loss_coef": 0.1}, **of("llama4_text"))


@RECORDED
def test_where_trls_path_would_fail_it_runs_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    makers = of("granitemoe") | {"peft": lambda: lora(target_modules=["q_proj"], lora_dropout=0.1)}
    with caplog.at_level(logging.WARNING, logger="wishbone"):
        ours = trainer("ours", tmp_path, {"max_steps": 1, "disable_dropout": False}, **makers)
    assert ours.preference_step is None and "looks for num_experts" in caplog.text
    assert ours.train().training_loss > 0
