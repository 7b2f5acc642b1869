"""The diagnosis of a run from its curves: known failures of preference optimization.

Every finding names its evidence in figures, and a remedy. The figures are those of the held-out pairs if the run
measured them at least twice, otherwise means over the first and last tenth of training.

The best-known failure is the collapse of both rewards: the loss depends only on the margin r_chosen - r_rejected, so it
also falls when both answers become less likely, the rejected one faster (Pal et al. 2024, "Smaug", arXiv:2402.13228;
Razin et al. 2024, arXiv:2410.08847).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from wishbone.report.guard import alarms
from wishbone.report.outcome import accuracy, in_words
from wishbone.report.run_directory import HELDOUT_PREFIX, RunRecord
from wishbone.report.series import Series, ends, finite, running_mean

CLEAR_MARGIN = 0.05
CLEAR_FALL = 0.1
NO_MARGIN = 0.01
ENOUGH_POINTS, ENOUGH_RANKED = 10, 30
EARLY = 1 / 3
ALL_PAIRS = 0.995
OVERFIT = 1.05


@dataclass(frozen=True)
class Finding:
    """One finding, with its evidence and a remedy."""

    severity: Literal["problem", "warning"]
    title: str
    evidence: str
    remedy: str


def diagnose(record: RunRecord) -> list[Finding]:
    """Return the findings for a run, problems first; empty if nothing is unusual."""
    checks: list[Callable[[RunRecord], Finding | None]] = [
        _not_finite,
        _both_rewards_fall,
        _nothing_learned,
        _told_apart_at_once,
        _overfit,
    ]
    found = [_alarm(alarm) for alarm in alarms(record)]
    found += [finding for check in checks if (finding := check(record))]
    return sorted(found, key=lambda finding: finding.severity != "problem")


def verdict(record: RunRecord) -> str | None:
    """Return what it means that nothing was found, in a sentence.

    None if something was, if nothing was logged, or if the run failed: its reason is what stands out.
    """
    logged = len(record.metrics.get("loss", []))
    if not record.metrics or record.status == "failed" or diagnose(record):
        return None
    if logged < ENOUGH_RANKED:
        return f"Too few steps to judge: {logged} logged, {ENOUGH_RANKED} needed. So far nothing stands out."
    guard = record.summary.get("guard")
    if isinstance(guard, dict) and guard.get("enough") is False:
        return "The curves show no known problem; the guard measured too seldom to judge answers."
    return "The curves show no known problem."


def _alarm(alarm: dict[str, Any]) -> Finding:
    """An alarm of the guard as a finding."""
    evidence = f"Guard at step {alarm['step']:,}, since step {alarm['since']:,}: {alarm['seen']}. {alarm['action']}"
    return Finding(alarm["severity"], alarm["title"], evidence.strip(), alarm["advice"])


def _not_finite(record: RunRecord) -> Finding | None:
    loss = record.metrics.get("loss", [])
    steps = [step for step, value in loss if not math.isfinite(value)]
    if not steps:
        return None
    return Finding(
        "problem",
        "The loss is not a finite number",
        f"At {len(steps):,} of {len(loss):,} logged steps, first at step {steps[0]:,.0f}. The result of training after "
        "that step cannot be trusted.",
        "Lower training.learning_rate, keep training.max_grad_norm at 1, and use bfloat16 or float32 for model.dtype.",
    )


def _both_rewards_fall(record: RunRecord) -> Finding | None:
    chosen, rejected, margin = (_change(record, f"rewards/{name}") for name in ("chosen", "rejected", "margins"))
    if chosen is None or rejected is None or margin is None:
        return None
    fell, grew = chosen[0] - chosen[1], margin[1] - margin[0]
    if grew < CLEAR_MARGIN or fell < max(CLEAR_MARGIN, CLEAR_FALL * grew):
        return None
    return Finding(
        "warning",
        "Chosen answers became less likely",
        f"The margin grew by {in_words(grew)} while the chosen reward went from {in_words(chosen[0])} to "
        f"{in_words(chosen[1])} and the rejected reward from {in_words(rejected[0])} to {in_words(rejected[1])}: the "
        "model moves away from both answers, faster from the rejected one.",
        "Lower training.learning_rate or training.epochs, raise preference.beta, or keep the chosen answers likely "
        "with preference.loss [sigmoid, sft] or dpop. The answers of wishbone compare show whether it matters.",
    )


def _nothing_learned(record: RunRecord) -> Finding | None:
    margin, gradient = ends(record.metrics.get("rewards/margins", [])), finite(record.metrics.get("grad_norm", []))
    if margin is None or len(finite(record.metrics["rewards/margins"])) < ENOUGH_POINTS:
        return None
    if abs(margin[1] - margin[0]) >= NO_MARGIN:
        return None
    if gradient and all(value == 0 for _, value in gradient):
        reason = "The gradient is zero at every logged step: nothing is being trained."
        remedy = "Check adapter.target_modules, and that chosen and rejected answers differ."
    else:
        reason = f"The reward margin was {in_words(margin[0])} at the beginning and {in_words(margin[1])} at the end."
        remedy = "Train longer, or raise training.learning_rate two to five times, and look at some pairs of the data."
    return Finding("warning", "Little was learned", reason, remedy)


def _told_apart_at_once(record: RunRecord) -> Finding | None:
    ranked = accuracy(record)
    count = len(finite(ranked))
    if count < ENOUGH_RANKED:
        return None
    window = max(5, count // 20) | 1
    smooth = finite(running_mean(ranked, window))[window // 2 : count - window // 2]
    step = next((step for step, value in smooth if value >= ALL_PAIRS), None)
    last = ranked[-1][0]
    if step is None or step > EARLY * last:
        return None
    return Finding(
        "warning",
        "The model tells the pairs apart very early",
        f"From step {step:,.0f} of {last:,.0f} on, it ranks nearly every training pair correctly. Often something "
        "simple distinguishes the chosen answers: their length, a phrase, a format.",
        "Compare some chosen and rejected answers yourself, and judge the run by its answers in wishbone compare.",
    )


def _overfit(record: RunRecord) -> Finding | None:
    heldout = finite(record.metrics.get(HELDOUT_PREFIX + "loss", []))
    training = ends(record.metrics.get("loss", []))
    guard = record.summary.get("guard")
    if isinstance(guard, dict) and guard.get("restored_step") is not None:
        heldout = heldout[:-1]  # the last measurement is one of earlier weights
    if len(heldout) < 3 or training is None or training[1] >= training[0]:
        return None
    step, lowest = min(heldout, key=lambda point: point[1])
    last_step, last = heldout[-1]
    if lowest <= 0 or last < OVERFIT * lowest:
        return None
    return Finding(
        "warning",
        "The held-out loss rises again",
        f"It was lowest at step {step:,.0f} ({in_words(lowest)}) and is {in_words(last)} at step {last_step:,.0f}, "
        "while the training loss keeps falling: the model memorizes the training pairs.",
        f"Stop near step {step:,.0f} (training.max_steps), lower training.learning_rate, or train on more pairs.",
    )


def _change(record: RunRecord, name: str) -> tuple[float, float] | None:
    """First and last value of a metric on the held-out pairs, otherwise at both ends of training."""
    heldout: Series = finite(record.metrics.get(HELDOUT_PREFIX + name, []))
    if len(heldout) > 1:
        return heldout[0][1], heldout[-1][1]
    return ends(record.metrics.get(name, []))
