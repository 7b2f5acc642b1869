"""Advice as data: rules that read facts and set settings, and the small language they are written in.

`rules.json` holds the names of all facts and settings and a list of rules; Python (here) and JavaScript (`builder/`)
read the same file, and the vectors in `tests/vectors` hold both to the same answers.

    {"id": "...", "when": condition, "set": {setting: expression}, "reason": text, "source": key, "kind": kind}

Rules are tried in order. A rule whose condition holds is applied: its expressions are evaluated with the settings
before it, then all of them are set. So later rules override earlier ones and may read what those set. `kind` is
"setting" or "warning"; a warning sets nothing. The reason is a sentence or two, in which `{name}` is the text of a fact
or, if the name contains a dot, of a setting after the rule. `source` is a key of `references/README.md`.

Conditions. `all` and `any` stop at the first part that decides.

    true   false   {"fact": name}   {"setting": name}   (the value, which must be true or false)
    ["all", c...]   ["any", c...]   ["not", c]
    ["=", e, e]   equal values of one type (number, text, true/false, null); different types are not equal; no lists
    ["<", e, e]   ["<=", e, e]   numbers only
    ["in", e, [value...]]   `=` with any of them       ["has", e, value]   the list e contains the value

Expressions. A number is an IEEE double; arithmetic is evaluated from left to right.

    number   text   true   false   null
    {"fact": name}   {"setting": name}   {"list": [e...]}
    ["+", e, e...]   ["*", e, e...]   ["-", e, e]   ["/", e, e]   ["min", e, e...]   ["max", e, e...]   ["floor", e]

Anything unknown or of the wrong type (an operator, a fact, a setting, a setting that no rule has set yet, text instead
of a number, division by zero) raises `RulesError`: a broken rule gives no advice.

The text of a value is `wishbone.config.emit.number_text` for numbers, with commas in whole ones from 1,000 on, the
text itself, `yes` or `no`, `none` for null, and for a list its values with commas between them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from importlib import resources
from typing import Any, Literal

from wishbone.config.emit import number_text

Value = float | str | bool | None | list[Any]


class RulesError(ValueError):
    """A rule that cannot be evaluated; the message names it."""


@dataclass(frozen=True)
class Rule:
    """One piece of advice. Fields as in `rules.json`."""

    id: str
    when: Any
    set: Mapping[str, Any]
    reason: str
    source: str
    kind: Literal["setting", "warning"]


@dataclass(frozen=True)
class RuleBook:
    """All rules, in order, with the names of the facts and settings that they may use."""

    facts: tuple[str, ...]
    settings: tuple[str, ...]
    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class Applied:
    """A rule whose condition held: what it set, and why.

    Attributes:
        set: settings and their values.
        reason: the sentence with the facts filled in.
    """

    id: str
    set: Mapping[str, Value]
    reason: str
    source: str
    kind: Literal["setting", "warning"]


@dataclass(frozen=True)
class Outcome:
    """The result of all rules.

    Attributes:
        facts: the facts that the rules read, numbers as doubles.
        settings: the last value of each setting, in the order of the rule book.
        applied: the rules whose conditions held, in order.
    """

    facts: Mapping[str, Value]
    settings: Mapping[str, Value]
    applied: tuple[Applied, ...]


@cache
def rule_book() -> RuleBook:
    """The rules of this package."""
    return read_rules(resources.files("wishbone.config").joinpath("rules.json").read_text(encoding="utf-8"))


def read_rules(text: str) -> RuleBook:
    """Rules from JSON text.

    Raises:
        RulesError: ids are not unique, or a rule has missing or unknown keys.
    """
    document = json.loads(text)
    try:
        rules = tuple(Rule(**rule) for rule in document["rules"])
    except TypeError as error:
        raise RulesError(f"a rule has the keys id, when, set, reason, source, kind and no others ({error})") from error
    names = [rule.id for rule in rules]
    if twice := {name for name in names if names.count(name) > 1}:
        raise RulesError(f"ids given twice: {', '.join(sorted(twice))}")
    return RuleBook(tuple(document["facts"]), tuple(document["settings"]), rules)


def evaluate(book: RuleBook, facts: Mapping[str, Any]) -> Outcome:
    """Apply rules to facts.

    Args:
        book: the rules.
        facts: exactly the facts that `book` names; numbers may be int or float.

    Raises:
        RulesError: facts are missing or unknown, or a rule cannot be evaluated.
    """
    if odd := set(book.facts).symmetric_difference(facts):
        raise RulesError(f"facts are not those of the rules: {', '.join(sorted(odd))} missing or unknown")
    known = {name: _value(value) for name, value in facts.items()}
    settings: dict[str, Value] = {}
    applied = []
    for rule in book.rules:
        scope = Scope(rule.id, known, settings)
        if not scope.holds(rule.when):
            continue
        if unknown := set(rule.set).difference(book.settings):
            raise RulesError(f"rule {rule.id}: unknown settings {', '.join(sorted(unknown))}")
        changes = {name: scope.value(expression) for name, expression in rule.set.items()}
        settings.update(changes)
        applied.append(Applied(rule.id, changes, scope.fill(rule.reason), rule.source, rule.kind))
    return Outcome(known, {name: settings[name] for name in book.settings if name in settings}, tuple(applied))


@dataclass(frozen=True)
class Scope:
    """What a rule can read: facts, and the settings so far. `rule` is its name in errors."""

    rule: str
    facts: Mapping[str, Value]
    settings: Mapping[str, Value]

    def holds(self, condition: Any) -> bool:
        """Whether a condition is true."""
        if isinstance(condition, bool):
            return condition
        match condition:
            case ["all", *parts]:
                return all(self.holds(part) for part in parts)
            case ["any", *parts]:
                return any(self.holds(part) for part in parts)
            case ["not", part]:
                return not self.holds(part)
            case ["=", left, right]:
                return self._same(self.value(left), self.value(right))
            case ["<", left, right]:
                return self._number(left) < self._number(right)
            case ["<=", left, right]:
                return self._number(left) <= self._number(right)
            case ["in", left, [*values]]:
                value = self.value(left)
                return any(self._same(value, _value(other)) for other in values)
            case ["has", left, wanted]:
                found = self.value(left)
                if isinstance(found, list):
                    return any(self._same(value, _value(wanted)) for value in found)
            case {"fact": _} | {"setting": _} if isinstance(self.value(condition), bool):
                return self.value(condition) is True
        raise self._wrong(condition)

    def value(self, expression: Any) -> Value:
        """The value of an expression."""
        if expression is None or isinstance(expression, bool | str | int | float):
            return _value(expression)
        match expression:
            case {"fact": str(name)} if name in self.facts and len(expression) == 1:
                return self.facts[name]
            case {"setting": str(name)} if name in self.settings and len(expression) == 1:
                return self.settings[name]
            case {"list": [*items]} if len(expression) == 1:
                return [self.value(item) for item in items]
            case [operator, first, *rest] if isinstance(operator, str) and operator in _ARITHMETIC:
                return self._calculated(operator, [self._number(part) for part in (first, *rest)])
        raise self._wrong(expression)

    def fill(self, text: str, show: Callable[[Value], str] | None = None) -> str:
        """Text with the names in braces replaced by their values; `show` writes a value, by default `value_text`."""
        show = show or value_text
        start, *parts = text.split("{")
        for part in parts:
            name, brace, rest = part.partition("}")
            values = self.settings if "." in name else self.facts
            if not brace or name not in values:
                raise self._wrong(text)
            start += show(values[name]) + rest
        return start

    def _calculated(self, operator: str, numbers: Sequence[float]) -> float:
        least, most, function = _ARITHMETIC[operator]
        if not least <= len(numbers) <= most or (operator == "/" and numbers[1] == 0):
            raise self._wrong([operator, *numbers])
        result = function(numbers)
        if not math.isfinite(result):
            raise self._wrong([operator, *numbers])
        return result

    def _number(self, expression: Any) -> float:
        value = self.value(expression)
        if isinstance(value, bool) or not isinstance(value, float):
            raise self._wrong(expression)
        return value

    def _same(self, left: Value, right: Value) -> bool:
        if isinstance(left, list) or isinstance(right, list):
            raise self._wrong([left, right])
        return type(left) is type(right) and left == right

    def _wrong(self, part: Any) -> RulesError:
        return RulesError(f"rule {self.rule}: {json.dumps(part)} cannot be evaluated")


_ARITHMETIC: dict[str, tuple[int, int, Callable[[Sequence[float]], float]]] = {
    "+": (2, 99, lambda numbers: reduce(lambda left, right: left + right, numbers)),
    "*": (2, 99, lambda numbers: reduce(lambda left, right: left * right, numbers)),
    "-": (2, 2, lambda numbers: numbers[0] - numbers[1]),
    "/": (2, 2, lambda numbers: numbers[0] / numbers[1]),
    "min": (2, 99, min),
    "max": (2, 99, max),
    "floor": (1, 1, lambda numbers: float(math.floor(numbers[0]))),
}


def value_text(value: Value) -> str:
    """A value as reasons show it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(value_text, value))
    if isinstance(value, str):
        return value
    text = number_text(value)
    return f"{int(text):,}" if text.isdecimal() else text


def _value(given: Any) -> Value:
    """A fact or a constant of a rule, with its numbers as doubles."""
    if isinstance(given, list | tuple):
        return [_value(item) for item in given]
    return float(given) if isinstance(given, int) and not isinstance(given, bool) else given
