"""When a measurement is unusual, and when that becomes an alarm.

Each sign compares a measurement with the first one of the same run, or with the reference, and says what it saw. An
alarm needs the sign in two measurements in a row, and does not come again until the sign was absent twice. The limits
lie between runs that went well and runs that did not; docs/guard.md has the measurements and the sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from wishbone.planning.situation import Symptom

Values = Mapping[str, float]
IN_A_ROW = 2

DRIFT_WARNING, DRIFT_PROBLEM = -0.15, -0.3
KL_WARNING, KL_PROBLEM = 1.0, 2.0
SATURATED_PAIRS = 0.9
REPEATED, REPEATED_MORE = 0.3, 0.25
ENDED_LESS = 0.5
LONGER = 1.5
ENTROPY_FALL, ENTROPY_RISE = 0.4, 1.6
GRADIENT_GROWTH = 10.0
NOISE_SHARE = 0.5


@dataclass(frozen=True)
class Sign:
    """One thing that can go wrong.

    Attributes:
        name: its name in guard.jsonl.
        symptom: its name in the rules of the advice.
        severity: a problem is acted on where that was asked, a warning only reported.
        title: what it is, in a few words.
        needs: the values that it reads.
        seen: returns what was seen in a measurement and the first one, in words, or None.
    """

    name: str
    symptom: Symptom
    severity: Literal["problem", "warning"]
    title: str
    needs: tuple[str, ...]
    seen: Callable[[Values, Values], str | None]


@dataclass(frozen=True)
class Alarm:
    """A sign that was there twice in a row.

    Attributes:
        step: optimizer steps at the second time.
        since: optimizer steps at the first time.
        text: what was seen.
    """

    sign: Sign
    step: int
    since: int
    text: str


def _displaced(limit: float) -> Callable[[Values, Values], str | None]:
    def seen(now: Values, first: Values) -> str | None:
        if now["chosen_drift"] > limit:
            return None
        chosen, rejected = -now["chosen_drift"], -now["rejected_drift"]
        return (
            f"a token of a chosen answer lost {chosen:.2f} nats against the reference (limit {-limit:g}), one of a "
            f"rejected answer {rejected:.2f}; the reward margin is {now['margin']:.2f}"
        )

    return seen


def _far(limit: float) -> Callable[[Values, Values], str | None]:
    def seen(now: Values, first: Values) -> str | None:
        if now["kl"] < limit:
            return None
        return (
            f"the model's own greedy answers are {now['kl']:.2f} nats a token more likely than under the reference "
            f"(limit {limit:g}, first {first.get('kl', 0.0):.2f}): it has moved far from where it began"
        )

    return seen


def _saturated(now: Values, first: Values) -> str | None:
    if now["saturated"] < SATURATED_PAIRS:
        return None
    return (
        f"{now['saturated']:.0%} of the pairs have a margin above 4.6 (mean {now['margin']:.1f}), so they have less "
        "than 1 % of their first weight in the gradient and teach nothing more"
    )


def _repeats(now: Values, first: Values) -> str | None:
    if now["repetition"] < max(REPEATED, first["repetition"] + REPEATED_MORE):
        return None
    return (
        f"{now['repetition']:.0%} of the 4-grams in greedy answers are repetitions (first {first['repetition']:.0%}, "
        f"limit {max(REPEATED, first['repetition'] + REPEATED_MORE):.0%})"
    )


def _does_not_end(now: Values, first: Values) -> str | None:
    if now["ended"] > first["ended"] - ENDED_LESS:
        return None
    return (
        f"{now['ended']:.0%} of the greedy answers end by themselves, at first {first['ended']:.0%} did; "
        f"they have {now['length']:.0f} tokens, at first {first['length']:.0f}"
    )


def _longer(now: Values, first: Values) -> str | None:
    if now["length"] < LONGER * first["length"]:
        return None
    limit = LONGER * first["length"]
    return f"greedy answers have {now['length']:.0f} tokens, at first {first['length']:.0f} (limit {limit:.0f})"


def _entropy(now: Values, first: Values) -> str | None:
    if ENTROPY_FALL * first["entropy"] < now["entropy"] < ENTROPY_RISE * first["entropy"]:
        return None
    return (
        f"the entropy of the next token is {now['entropy']:.2f} nats, at first {first['entropy']:.2f} (limits "
        f"{ENTROPY_FALL * first['entropy']:.2f} and {ENTROPY_RISE * first['entropy']:.2f})"
    )


def _gradient(now: Values, first: Values) -> str | None:
    if now["gradient_growth"] < GRADIENT_GROWTH:
        return None
    if not math.isfinite(now["gradient"]):
        return "the norm of the gradient is not a finite number"
    return (
        f"the norm of the gradient is {now['gradient']:.3g}, {now['gradient_growth']:.0f} times that of the first "
        f"steps (limit {GRADIENT_GROWTH:g} times)"
    )


def _noise(now: Values, first: Values) -> str | None:
    noise = first["reward_spread"]
    if now["late"] < 1 or noise <= 0 or abs(now["margin"]) * NOISE_SHARE > noise:
        return None
    return (
        f"rewards scattered by {noise:.3f} before the first step, where they should all be 0, and the margin is "
        f"{now['margin']:.3f}: rounding hides what was learned. Exact rewards need a dtype with more bits"
    )


DRIFT = ("chosen_drift", "rejected_drift", "margin")
ANSWERS = ("repetition",)
SIGNS = (
    Sign("displacement", "collapse", "problem", "Chosen answers collapse", DRIFT, _displaced(DRIFT_PROBLEM)),
    Sign("far", "collapse", "problem", "The model has left its reference", ("kl",), _far(KL_PROBLEM)),
    Sign("repetition", "repetition", "problem", "Answers repeat themselves", ANSWERS, _repeats),
    Sign("ends", "repetition", "problem", "Answers do not end any more", ("ended", "length"), _does_not_end),
    Sign("entropy", "collapse", "problem", "The entropy of the answers has changed", ("entropy",), _entropy),
    Sign("gradient", "nan", "problem", "The gradient explodes", ("gradient", "gradient_growth"), _gradient),
    Sign("falling", "chosen_falling", "warning", "Chosen answers lose probability", DRIFT, _displaced(DRIFT_WARNING)),
    Sign("moving", "lost_abilities", "warning", "The model moves away from its reference", ("kl",), _far(KL_WARNING)),
    Sign("saturation", "collapse", "warning", "The margin is saturated", ("saturated", "margin"), _saturated),
    Sign("length", "length_growth", "warning", "Answers grow longer", ("length",), _longer),
    Sign("noise", "no_learning", "warning", "Rewards are within their noise", ("reward_spread", "late"), _noise),
)


@dataclass(frozen=True)
class Judgement:
    """What one measurement says.

    Attributes:
        alarms: the new ones.
        seen: names of all signs that were seen.
        unconfirmed: whether one of them was seen for the first time, so that another measurement has to confirm it.
    """

    alarms: list[Alarm]
    seen: list[str]
    unconfirmed: bool


class Judge:
    """Turns measurements into alarms.

    Attributes:
        first: the first value of each name in this run.
    """

    def __init__(self) -> None:
        self.first: dict[str, float] = {}
        self._streaks: dict[str, list[int]] = {}
        self._absent: dict[str, int] = {}

    def judge(self, step: int, values: Values) -> Judgement:
        """Take a measurement made after `step` optimizer steps."""
        self.first = {**values, **self.first}
        alarms, seen = [], []
        for sign in SIGNS:
            if any(name not in values or name not in self.first for name in sign.needs):
                continue
            text = sign.seen(values, self.first)
            if text is None:
                self._absent[sign.name] = self._absent.get(sign.name, 0) + 1
                if self._absent[sign.name] >= IN_A_ROW or len(self._streaks.get(sign.name, [])) < IN_A_ROW:
                    self._streaks.pop(sign.name, None)
                continue
            seen.append(sign.name)
            self._absent[sign.name] = 0
            streak = self._streaks.setdefault(sign.name, [])
            streak.append(step)
            if len(streak) == IN_A_ROW:
                alarms.append(Alarm(sign, step, streak[0], text))
        return Judgement(alarms, seen, any(len(self._streaks[name]) < IN_A_ROW for name in seen))

    def again(self, name: str) -> None:
        """Let a sign that is still there raise a further alarm after two more measurements."""
        self._streaks.pop(name, None)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as JSON."""
        return {"first": self.first, "streaks": self._streaks, "absent": self._absent}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.first = dict(state["first"])
        self._streaks = {name: list(steps) for name, steps in state["streaks"].items()}
        self._absent = dict(state["absent"])
