"""Advice as a file: YAML, JSON or a Python script for Wishbone, TRL or Unsloth, from templates that are data.

`targets.json` holds the templates; Python (here) and JavaScript (`builder/`) read the same file. Conditions and
expressions are those of the rules (`wishbone.config.rules`), and `wishbone.config.emit` writes the text.

Documents. `entries` are names with expressions, in order, some with a condition `when`; a dot in a name separates
section and key. `{"map": {...}}` in an expression is a mapping. `{"section": name}` stands for all settings of that
section that are not null, in the order in which the rules name settings. `refuse` holds problems with their conditions.
`reason` names the setting whose reason is written above an entry; entries of a section get the reason of the rule that
set them.

Scripts. A script is a list of blocks, a block a list of lines: text in which `{name}` is a fact or, with a dot, a
setting, as a Python literal; `{"reason": setting, "indent": n}` for a comment; `{"when": c, "lines": [...]}`; and
`{"include": block}`. Text from the user is only ever written as a literal, so any text gives valid Python.

The reason of a setting is that of the rule which set it last. A file has each reason once, at its first place, and
leaves out the reason "As asked.".
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

from wishbone.config.emit import comment, json_text, python_literal, yaml_text
from wishbone.config.rules import Applied, Outcome, Scope
from wishbone.errors import RequestError

Target = Literal["wishbone", "trl", "unsloth"]
Format = Literal["yaml", "json", "python"]
AS_ASKED = "As asked."


@cache
def _templates() -> dict[str, Any]:
    text = resources.files("wishbone.config").joinpath("targets.json").read_text(encoding="utf-8")
    templates: dict[str, Any] = json.loads(text)
    return templates


def write(target: Target, form: Format, outcome: Outcome) -> str:
    """The file for a target with the result of the rules, as text that ends with a line break.

    Raises:
        RequestError: these settings cannot be written for this target.
    """
    advice = _Advice.of(outcome, f"target {target}")
    if form == "python":
        blocks = _templates()["blocks"]
        said: set[str] = set()
        lines = (line for name in _templates()["scripts"][target] for line in advice.lines(blocks[name], said))
        return "\n".join(lines) + "\n"
    document, comments = advice.document(_templates()["documents"][target])
    return yaml_text(document, comments) if form == "yaml" else json_text(document)


@dataclass(frozen=True)
class _Advice:
    scope: Scope
    decided: Mapping[str, Applied]

    @classmethod
    def of(cls, outcome: Outcome, name: str) -> _Advice:
        decided = {setting: rule for rule in outcome.applied for setting in rule.set}
        return cls(Scope(name, outcome.facts, outcome.settings), decided)

    def document(self, template: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """Values and comments of a document."""
        if problems := [item["problem"] for item in template["refuse"] if self.scope.holds(item["when"])]:
            raise RequestError(problems)
        document: dict[str, Any] = {}
        comments = {"": template["head"]}
        for entry in self._entries(template["entries"]):
            if not self.scope.holds(entry.get("when", True)):
                continue
            section, point, key = entry["name"].partition(".")
            place = document.setdefault(section, {}) if point else document
            place[key or section] = self._value(entry["value"])
            reason = self._reason(entry.get("reason"))
            if reason and reason not in comments.values():
                comments[entry["name"]] = reason
        return document, comments

    def _entries(self, entries: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for entry in entries:
            if "section" not in entry:
                yield entry
                continue
            for name, value in self.scope.settings.items():
                if name.startswith(f"{entry['section']}.") and value is not None:
                    yield {"name": name, "value": {"setting": name}, "reason": name}

    def _value(self, expression: Any) -> Any:
        match expression:
            case {"map": fields}:
                return {name: self._value(field) for name, field in fields.items()}
            case {"list": items}:
                return [self._value(item) for item in items]
        return self.scope.value(expression)

    def _reason(self, setting: str | None) -> str:
        if setting is None or setting not in self.decided or self.decided[setting].reason == AS_ASKED:
            return ""
        return self.decided[setting].reason

    def lines(self, block: list[Any], said: set[str]) -> Iterator[str]:
        """Lines of a block of a script; reasons in `said` were written before and are not repeated."""
        for line in block:
            match line:
                case str():
                    yield self.scope.fill(line, python_literal)
                case {"reason": setting, "indent": indent}:
                    reason = self._reason(setting)
                    if reason and reason not in said:
                        said.add(reason)
                        yield from comment(reason, indent)
                case {"when": condition, "lines": lines}:
                    if self.scope.holds(condition):
                        yield from self.lines(lines, said)
                case {"include": name}:
                    yield from self.lines(_templates()["blocks"][name], said)
