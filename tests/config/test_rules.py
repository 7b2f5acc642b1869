"""The language of the rules, and the promises that the rules of this package keep."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wishbone.config.explain import sections
from wishbone.config.rules import (
    Outcome,
    Rule,
    RuleBook,
    RulesError,
    Scope,
    evaluate,
    read_rules,
    rule_book,
    value_text,
)
from wishbone.config.schema import RunConfig

REFERENCES = Path(__file__).parents[2] / "references" / "README.md"
FACTS = {"n": 4, "half": 0.5, "name": "o'clock", "yes": True, "nothing": None, "words": ["a", "b"]}
SCOPE = Scope("tried", {**FACTS, "n": 4.0}, {"a.set": 8.0})


def book(*rules: dict[str, Any]) -> RuleBook:
    whole = [{"id": f"r{i}", "when": True, "set": {}, "reason": ".", "source": "s", "kind": "setting", **rule}
             for i, rule in enumerate(rules)]  # fmt: skip
    return read_rules(json.dumps({"facts": list(FACTS), "settings": ["a.x", "a.y", "a.z"], "rules": whole}))


def settings(*rules: dict[str, Any]) -> dict[str, Any]:
    return dict(evaluate(book(*rules), FACTS).settings)


@pytest.mark.parametrize(
    ("condition", "answer"),
    [
        (True, True),
        ({"fact": "yes"}, True),
        (["not", {"fact": "yes"}], False),
        (["=", {"fact": "n"}, 4], True),
        (["=", {"fact": "n"}, "4"], False),
        (["=", {"fact": "yes"}, 1], False),
        (["=", {"fact": "nothing"}, None], True),
        (["=", {"fact": "nothing"}, False], False),
        (["<", {"fact": "half"}, {"fact": "n"}], True),
        (["<", {"fact": "n"}, {"fact": "n"}], False),
        (["<=", {"fact": "n"}, {"fact": "n"}], True),
        (["in", {"fact": "name"}, ["noon", "o'clock"]], True),
        (["in", {"fact": "n"}, ["4", 5]], False),
        (["has", {"fact": "words"}, "b"], True),
        (["has", {"fact": "words"}, "c"], False),
        (["all"], True),
        (["any"], False),
        (["all", False, ["<", {"fact": "nothing"}, 1]], False),  # stops before what it could not evaluate
        (["any", True, ["<", {"fact": "nothing"}, 1]], True),
        (["all", True, ["any", False, True]], True),
    ],
)
def test_conditions(condition: Any, answer: bool):
    assert SCOPE.holds(condition) is answer


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        (3, 3.0),
        ("text", "text"),
        (None, None),
        (False, False),
        ({"fact": "n"}, 4.0),
        ({"setting": "a.set"}, 8.0),
        ({"list": [1, {"fact": "name"}]}, [1.0, "o'clock"]),
        (["+", 1, 2, 3], 6.0),
        (["-", 1, 3], -2.0),
        (["*", {"fact": "n"}, {"fact": "half"}, 10], 20.0),
        (["/", 1, 8], 0.125),
        (["min", 3, 2, 5], 2.0),
        (["max", 3, ["*", 2, 2]], 4.0),
        (["floor", -1.5], -2.0),
        (["+", 0.1, 0.2, -0.3], 0.1 + 0.2 - 0.3),  # from left to right, in doubles
    ],
)
def test_expressions(expression: Any, value: Any):
    found = SCOPE.value(expression)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "condition",
    [
        "true", 1, None, [], ["xor", True], ["not"], ["not", True, False], ["=", 1], ["<", "1", 2], ["<", True, 2],
        ["=", {"fact": "words"}, 1], ["in", {"fact": "n"}, 4], ["has", {"fact": "n"}, 4], {"fact": "n"},
        {"fact": "unknown"}, ["=", {"fact": "unknown"}, 1], ["=", {"setting": "a.x"}, 1], ["=", ["^", 2, 3], 8],
        ["<", ["/", 1, 0], 1], ["<", ["floor", 1, 2], 1], ["<", ["+", 1], 3], ["<", ["*", 1e308, 10], 1],
        ["=", {"fact": "n", "setting": "a.set"}, 4], ["<", {"fact": "nothing"}, 1], ["=", {"list": 3}, 1],
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_refused(condition: Any):
    with pytest.raises(RulesError, match=r"rule tried: .* cannot be evaluated"):
        SCOPE.holds(condition)


def test_later_rules_override_and_read_what_stood_before():
    assert settings(
        {"set": {"a.x": 1, "a.y": 10}},
        {"when": ["<", {"setting": "a.x"}, 2], "set": {"a.x": ["+", {"setting": "a.x"}, 1], "a.y": {"setting": "a.x"}}},
        {"when": ["=", {"setting": "a.x"}, 1], "set": {"a.z": 0}},
    ) == {"a.x": 2.0, "a.y": 1.0}


def test_settings_come_in_the_order_of_their_names_whatever_sets_them():
    assert list(settings({"set": {"a.z": 1}}, {"set": {"a.y": 1, "a.x": 2}})) == ["a.x", "a.y", "a.z"]


def test_reasons_are_filled_with_facts_and_settings_after_the_rule():
    rules = book(
        {"set": {"a.x": 5e-6}, "reason": "{n} of {name}, {half}, {words}, {nothing}, {yes}: {a.x}"},
        {"set": {"a.x": 1}, "reason": "now {a.x}"},
    )
    reasons = [applied.reason for applied in evaluate(rules, FACTS).applied]
    assert reasons == ["4 of o'clock, 0.5, a, b, none, yes: 5e-6", "now 1"]


def test_braces_in_facts_are_text():
    rules = book({"reason": "{name}"})
    facts = {**FACTS, "name": "{n} {a.x} }{"}
    assert evaluate(rules, facts).applied[0].reason == "{n} {a.x} }{"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"reason": "{unknown}"}, "cannot be evaluated"),
        ({"reason": "{a.x}"}, "cannot be evaluated"),
        ({"reason": "{n"}, "cannot be evaluated"),
        ({"set": {"a.w": 1}}, "unknown settings a.w"),
        ({"set": {"a.x": {"setting": "a.y"}}}, "cannot be evaluated"),
    ],
)
def test_a_broken_rule_gives_no_advice(rule: dict[str, Any], message: str):
    with pytest.raises(RulesError, match=message):
        evaluate(book(rule), FACTS)


def test_facts_must_be_those_of_the_rules():
    with pytest.raises(RulesError, match="name, other missing or unknown"):
        evaluate(book(), {**{k: v for k, v in FACTS.items() if k != "name"}, "other": 1})


def test_ids_are_unique_and_keys_known():
    rule = {"id": "a", "when": True, "set": {}, "reason": "", "source": "", "kind": "setting"}
    with pytest.raises(RulesError, match="ids given twice: a"):
        read_rules(json.dumps({"facts": [], "settings": [], "rules": [rule, rule]}))
    with pytest.raises(RulesError, match="no others"):
        read_rules(json.dumps({"facts": [], "settings": [], "rules": [rule | {"sets": {}}]}))


ATOMS = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3)
KEYS = st.sampled_from(["fact", "setting", "list", "x"])


@given(
    st.recursive(ATOMS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=2))
    | st.lists(st.sampled_from(["all", "not", "has", "in", "floor", "/", "=", 0, {"fact": "n"}, {"fact": "words"}]))
)
def test_nothing_but_a_rules_error_comes_out(document: Any):
    for function in (SCOPE.holds, SCOPE.value):
        with contextlib.suppress(RulesError):
            function(document)


# the rules of this package


def test_settings_are_those_of_a_run_or_of_scripts_and_stand_in_its_order():
    known = [f"{section}.{key}" for section, keys in sections().items() for key in keys]
    of_runs = [name for name in rule_book().settings if not name.startswith("script.")]
    assert set(of_runs) <= set(known)
    assert list(dict.fromkeys(name.partition(".")[0] for name in of_runs)) == [
        section for section in RunConfig.model_fields if section != "output"
    ]


def names_in(part: Any, kind: str) -> set[str]:
    if isinstance(part, dict):
        own = {part[kind]} if kind in part and isinstance(part[kind], str) else set()
        return own.union(*(names_in(value, kind) for value in part.values()))
    return set().union(*(names_in(item, kind) for item in part)) if isinstance(part, list) else set()


def test_rules_name_known_facts_and_settings_alone():
    """Also in branches that no situation of the tests reaches."""
    rules = rule_book()
    for rule in rules.rules:
        parts = [rule.when, dict(rule.set)]
        filled = set(re.findall(r"\{([^}]*)\}", rule.reason))
        assert names_in(parts, "fact") | {name for name in filled if "." not in name} <= set(rules.facts), rule.id
        assert names_in(parts, "setting") | {name for name in filled if "." in name} | set(rule.set) <= set(
            rules.settings
        ), rule.id
        assert (rule.kind == "warning") == (not rule.set), rule.id
        assert rule.reason.endswith("."), rule.id
        assert rule.reason.isascii(), rule.id


def sources() -> dict[str, set[str]]:
    """Keys of the references, with the rules that each lists."""
    parts = re.split(r"^### ", REFERENCES.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    listed = {}
    for part in parts:
        key = part.partition("\n")[0].strip().strip("`")
        (line,) = re.findall(r"^Rules: (.*?)\.$", part, flags=re.MULTILINE | re.DOTALL)
        listed[key] = set(re.findall(r"`([^`]+)`", line))
    return listed


@pytest.mark.documents
def test_every_source_lists_the_rules_that_use_it():
    used: dict[str, set[str]] = {}
    for rule in rule_book().rules:
        used.setdefault(rule.source, set()).add(rule.id)
    listed = sources()
    assert set(used) <= set(listed)
    assert listed == {key: used.get(key, set()) for key in listed}


def test_text_of_values():
    assert [value_text(v) for v in (None, True, False, 1.0, 50_000.0, "a", ["b", 2.5])] == [
        "none",
        "yes",
        "no",
        "1",
        "50,000",
        "a",
        "b, 2.5",
    ]


def test_a_rule_that_never_held_leaves_no_trace():
    rules = rule_book()
    only = replace(rules, rules=(Rule("x", False, {"model.name": 1}, "{nothing}", "s", "setting"),))
    outcome = evaluate(only, dict.fromkeys(rules.facts))
    assert outcome == Outcome(dict.fromkeys(rules.facts), {}, ())
