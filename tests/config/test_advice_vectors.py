"""What the rules make of facts, against expectations worked out by hand; JavaScript is held to the same file."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from wishbone.config.load import parse_config
from wishbone.config.rules import Outcome, RuleBook, RulesError, evaluate, rule_book
from wishbone.config.targets import write

VECTORS = Path(__file__).parents[1] / "vectors" / "advice-rules.json"


@cache
def vectors() -> dict[str, dict[str, Any]]:
    """The vectors by name, written out."""
    whole: dict[str, dict[str, Any]] = {}
    for vector in json.loads(VECTORS.read_text(encoding="utf-8"))["vectors"]:
        assert vector["name"] not in whole, f"{vector['name']} is there twice"
        parent = whole.get(vector.get("like", "base"), {"facts": {}, "settings": {}, "warnings": []})
        assert "like" not in vector or vector["like"] in whole, vector["name"]
        settings = parent["settings"] | vector.get("settings", {})
        whole[vector["name"]] = {
            "facts": parent["facts"] | vector["facts"],
            "settings": {name: value for name, value in settings.items() if name not in vector.get("absent", ())},
            "warnings": vector.get("warnings", parent["warnings"]),
        }
    return whole


@pytest.mark.parametrize("name", vectors())
def test_advice(name: str):
    vector = vectors()[name]
    outcome = evaluate(rule_book(), vector["facts"])
    assert dict(outcome.settings) == vector["settings"]
    assert [rule.id for rule in outcome.applied if rule.kind == "warning"] == vector["warnings"]


@pytest.mark.slow
@pytest.mark.parametrize("name", vectors())
def test_advice_for_wishbone_is_a_configuration(name: str):
    """Accepted as it is written, in YAML and in JSON, and with the values that were advised."""
    outcome = evaluate(rule_book(), vectors()[name]["facts"])
    config = parse_config(write("wishbone", "yaml", outcome))
    assert config == parse_config(write("wishbone", "json", outcome))
    for setting, value in outcome.settings.items():
        section, _, key = setting.partition(".")
        if section != "script" and value is not None:
            assert getattr(getattr(config, section), key) == value


def test_there_are_enough():
    assert len(vectors()) >= 60


def test_each_rule_holds_in_one_vector_and_not_in_another():
    rules = rule_book().rules
    held = [{rule.id for rule in evaluate(rule_book(), vector["facts"]).applied} for vector in vectors().values()]
    for rule in rules:
        holds = [rule.id in ids for ids in held]
        assert any(holds), f"{rule.id} holds in no vector"
        assert rule.when is True or not all(holds), f"{rule.id} holds in every vector"


def shown(outcome: Outcome) -> Any:
    """What a person gets to see: settings, the reason of each, warnings."""
    reasons = {name: applied.reason for applied in outcome.applied for name in applied.set}
    return outcome.settings, reasons, [applied.id for applied in outcome.applied if applied.kind == "warning"]


@pytest.mark.slow
def test_no_rule_could_be_left_out():
    book = rule_book()
    outcomes = [(vector["facts"], evaluate(book, vector["facts"])) for vector in vectors().values()]
    for rule in book.rules:
        fewer = replace(book, rules=tuple(other for other in book.rules if other is not rule))

        def differs(facts: dict[str, Any], outcome: Outcome, fewer: RuleBook = fewer) -> bool:
            try:
                return shown(evaluate(fewer, facts)) != shown(outcome)
            except RulesError:
                return True

        assert any(differs(facts, outcome) for facts, outcome in outcomes), rule.id


def test_steps_stay_between_16_and_128_pairs_but_where_pairs_are_few():
    for name, vector in vectors().items():
        pairs = evaluate(rule_book(), vector["facts"]).settings["script.pairs_a_step"]
        few = vector["facts"]["pairs"] is not None and vector["facts"]["pairs"] < 400
        assert (4 if few else 16) <= pairs <= 128, name


def test_rates_stay_below_those_of_sft_unless_asked_for():
    for name, vector in vectors().items():
        rate = evaluate(rule_book(), vector["facts"]).settings["training.learning_rate"]
        given = vector["facts"]["learning_rate"]
        most = 2e-5 if vector["facts"]["method"] == "lora" else 1e-6
        assert rate <= max(most, given or 0), name


def test_the_documents_are_those_of_these_rules():
    script = Path(__file__).parents[2] / "scripts" / "write_vectors.py"
    outcome = subprocess.run([sys.executable, str(script), "--check"], check=False)
    assert outcome.returncode == 0, "run python scripts/write_vectors.py"
