"""What a run changed: the metrics of the same pairs before and after.

The held-out pairs are measured before the first and after the last step. If a run has no held-out pairs, or has not
ended, the first and last values that it logged are compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wishbone.errors import counted
from wishbone.report.run_directory import HELDOUT_PREFIX, RunRecord
from wishbone.report.series import ends, finite

ACCURACY = "rewards/accuracies"
MEASURES = {
    "loss": ("Loss", "training minimizes it"),
    ACCURACY: ("Accuracy", "share of pairs whose chosen answer has the higher reward"),
    "rewards/margins": ("Reward margin", "reward of the chosen minus that of the rejected answer"),
    "rewards/chosen": ("Chosen reward", "beta times (log-probability minus that of the reference)"),
    "rewards/rejected": ("Rejected reward", "the same for rejected answers"),
    "logps/chosen": ("Chosen log-probability", "of whole answers, in nats"),
    "logps/rejected": ("Rejected log-probability", "of whole answers, in nats"),
    "entropy": ("Entropy", "nats per token; falls when the model becomes more certain"),
}


@dataclass(frozen=True)
class Change:
    """One metric of the same pairs at two times; a value is None where all rewards were equal: no pair was ranked."""

    metric: str
    before: float | None
    after: float | None

    @property
    def label(self) -> str:
        """The name of the metric."""
        return MEASURES[self.metric][0]

    def shown(self) -> tuple[str, str, str]:
        """Before, after and difference, as text."""
        percent = self.metric == ACCURACY
        before, after = (
            "ties" if value is None else in_words(value, percent=percent) for value in (self.before, self.after)
        )
        if self.before is None or self.after is None:
            return before, after, "\N{EN DASH}"
        difference = self.after - self.before
        sign = "+" if difference > 0 else ""
        return before, after, sign + in_words(difference, percent=percent, points=True)


@dataclass(frozen=True)
class Outcome:
    """Changes, with a caption that says on which pairs they were measured, and the names of the two times."""

    caption: str
    times: tuple[str, str]
    changes: list[Change]


def outcome(record: RunRecord) -> Outcome:
    """Return what the run changed: on held-out pairs if there are some, otherwise on training pairs."""
    before, after = record.summary.get("heldout_before"), record.summary.get("heldout_after")
    heldout = heldout_pairs(record)
    pairs = f"the {counted(heldout, 'held-out pair')}" if heldout else "the held-out pairs"
    if isinstance(before, dict) and isinstance(after, dict):
        caption = f"Measured on {pairs}, which {'was' if heldout == 1 else 'were'} not trained on."
        return Outcome(caption, ("Before", "After"), _changes(before, after))
    logged = {name: finite(record.metrics.get(HELDOUT_PREFIX + name, [])) for name in MEASURES}
    logged = {name: points for name, points in logged.items() if len(points) > 1}
    if logged:
        first = min(points[0][0] for points in logged.values())
        last = max(points[-1][0] for points in logged.values())
        return Outcome(
            f"Measured on {pairs}; the run has not ended, so these are its first and latest evaluation.",
            (f"Step {first:,.0f}", f"Step {last:,.0f}"),
            _changes(*({name: points[at][1] for name, points in logged.items()} for at in (0, -1))),
        )
    trained = {name: both for name in MEASURES if (both := ends(record.metrics.get(name, [])))}
    why = f"{pairs} were not measured twice yet" if heldout else "none are held out"
    return Outcome(
        f"Measured on the training pairs, because {why}: means over the first and the last tenth.",
        ("First tenth", "Last tenth"),
        _changes(*({name: both[at] for name, both in trained.items()} for at in (0, 1))),
    )


def accuracy(record: RunRecord, prefix: str = "") -> list[tuple[float, float]]:
    """Return the accuracy over steps, without those at which all rewards were equal.

    Before its first update, the policy equals its reference: every reward is 0, every pair a tie, and the share of
    pairs with the higher chosen reward is 0, not the 50 % of chance.
    """
    ties = {step for step, margin in record.metrics.get(f"{prefix}rewards/margins", []) if margin == 0}
    return [point for point in record.metrics.get(prefix + ACCURACY, []) if point[0] not in ties or point[1] > 0]


def heldout_pairs(record: RunRecord) -> int | None:
    """Return how many pairs are held out, or None if the summary does not say."""
    pairs = record.summary.get("pairs")
    count = pairs.get("heldout") if isinstance(pairs, dict) else None
    return count if isinstance(count, int) else None


def in_words(value: float, *, percent: bool = False, points: bool = False) -> str:
    """Return a number with four significant digits, or a share in percent (a difference of shares in points)."""
    if not math.isfinite(value):
        return "not finite"
    if percent:
        return f"{100 * value:.1f} {'points' if points else '%'}".replace("-", "\N{MINUS SIGN}")
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if not -4 <= magnitude < 7:
        return f"{value:.3e}".replace("-", "\N{MINUS SIGN}", 1) if value < 0 else f"{value:.3e}"
    return f"{value:,.{min(max(0, 3 - magnitude), 4)}f}".replace("-", "\N{MINUS SIGN}")


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    return [
        Change(name, _ranked(before, name), _ranked(after, name))
        for name in MEASURES
        if _is_number(before.get(name)) and _is_number(after.get(name))
    ]


def _ranked(values: Mapping[str, Any], name: str) -> float | None:
    ties = name == ACCURACY and values.get("rewards/margins") == 0 and values[name] == 0
    return None if ties else float(values[name])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
