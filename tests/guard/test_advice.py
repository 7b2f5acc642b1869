from __future__ import annotations

from typing import Any

import pytest

from wishbone.config.rules import rule_book
from wishbone.guard.advice import advice_for
from wishbone.guard.judge import SIGNS

RUN: dict[str, Any] = {
    "adapter.method": "lora",
    "training.learning_rate": 2e-4,
    "training.epochs": 3.0,
    "training.max_grad_norm": 1.0,
    "preference.beta": 0.1,
    "preference.loss": ["sigmoid"],
}


def test_collapse_names_the_settings_of_the_rules_beside_those_of_the_run() -> None:
    text = advice_for("collapse", RUN)
    assert "training.learning_rate 5e-6 instead of 0.0002" in text
    assert "preference.loss [sigmoid, sft] instead of [sigmoid]" in text
    assert "training.epochs 1 instead of 3" in text
    reason = next(rule.reason for rule in rule_book().rules if rule.id == "collapse-beta")
    assert reason in text


def test_what_the_run_has_already_is_not_advised() -> None:
    text = advice_for("collapse", {**RUN, "preference.loss": ["sigmoid", "sft"], "preference.beta": 0.5})
    assert "preference" not in text
    assert "RPO" not in text


def test_a_symptom_whose_remedy_is_set_gets_that_of_collapse() -> None:
    anchored = {**RUN, "preference.loss": ["sigmoid", "sft"]}
    assert advice_for("chosen_falling", anchored) == advice_for("collapse", anchored)


@pytest.mark.parametrize("symptom", sorted({sign.symptom for sign in SIGNS}))
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("rate", [0.0, 5e-7, 5e-6, 1e-3, 5.0])
def test_every_sign_gets_advice(symptom: Any, method: str, rate: float) -> None:
    text = advice_for(symptom, {**RUN, "adapter.method": method, "training.learning_rate": rate})
    assert len(text) > 40
    assert "script." not in text
