"""What to change: the rules of the advice, asked with what the run showed as its symptom.

`config/rules.json` knows what helps against which symptom; `wishbone init` and the planner page read the same rules.
Those whose condition names the symptom are the advice: the settings that they change, where the run has other values,
and their reasons.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from wishbone.config.emit import number_text
from wishbone.config.rules import Value, rule_book, value_text
from wishbone.config.schema import EMBEDDED_MODEL
from wishbone.planning.advisor import advise
from wishbone.planning.known_models import known_shape
from wishbone.planning.situation import Situation, Symptom

ANCHORED = {"preference.loss", "preference.loss_weights"}
"""Settings that a rule changes when it asks for the anchor, the likelihood of chosen answers."""
RAISED = {"preference.beta"}
LOWERED = {"training.epochs", "adapter.rank", "adapter.alpha"}


def advice_for(symptom: Symptom, settings: Mapping[str, Any]) -> str:
    """Return what to change against a symptom, in a few sentences.

    Args:
        symptom: what was seen, as the rules name it.
        settings: those of the run by dotted name: `adapter.method`, `training.learning_rate`, `training.epochs`,
            `preference.beta`, `preference.loss`.
    """
    rate = settings["training.learning_rate"]
    outcome = advise(
        Situation(
            model=EMBEDDED_MODEL,
            data="pairs.jsonl",
            method=settings["adapter.method"],
            learning_rate=rate if 0 < rate <= 1 else None,
            symptoms=[symptom],
        ),
        known_shape(EMBEDDED_MODEL),  # only rules about memory read the shape, and no symptom here is about memory
    )
    asked = {rule.id for rule in rule_book().rules if f'"{symptom}"' in json.dumps(rule.when)}
    rules = [rule for rule in outcome.applied if rule.id in asked]
    touched = {name for rule in rules for name in rule.set}
    if "script.anchor" in touched:
        touched |= ANCHORED
    changes = {
        name: value
        for name, value in outcome.settings.items()
        if name in touched and not name.startswith("script.") and _differs(name, value, settings.get(name))
    }
    if "preference.loss" not in changes:
        changes.pop("preference.loss_weights", None)
    reasons = [rule.reason for rule in rules if not rule.set or _touches(rule.set, changes)]
    listed = [
        f"{name} {_shown(value)} instead of {_shown(settings[name])}" if name in settings else f"{name} {_shown(value)}"
        for name, value in changes.items()
    ]
    if not reasons and symptom != "collapse":
        return advice_for("collapse", settings)  # what helps against the symptom is set already
    return " ".join([f"Set {', '.join(listed)}."] * bool(listed) + reasons)


def _differs(name: str, advised: Value, own: Any) -> bool:
    """Whether the run has a setting otherwise, or, where only one direction helps, on the wrong side."""
    if isinstance(own, int | float) and isinstance(advised, float):
        return advised > own if name in RAISED else advised < own if name in LOWERED else advised != own
    return advised != (list(own) if isinstance(own, tuple) else own)


def _touches(rule: Mapping[str, Value], changes: Mapping[str, Value]) -> bool:
    names = set(rule) | (ANCHORED if "script.anchor" in rule else set())
    return not names.isdisjoint(changes)


def _shown(value: Any) -> str:
    return f"[{value_text(list(value))}]" if isinstance(value, list | tuple) else number_text(float(f"{value:g}"))
