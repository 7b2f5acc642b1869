"""Which curves of a run are shown, and how to read each."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import median

from wishbone.report.chart import Chart, Line
from wishbone.report.outcome import accuracy
from wishbone.report.run_directory import HELDOUT_PREFIX, RunRecord
from wishbone.report.series import Series, finite

SPIKE = 30


def curves(record: RunRecord) -> list[Chart]:
    """Return the charts of a run that have values."""
    every = [
        Chart(
            "loss",
            "Loss",
            "Should fall for both; if the held-out loss rises again, the model memorizes.",
            (_line(record, "loss"),),
            guide=_chance_loss(record),
        ),
        Chart(
            "accuracy",
            "Accuracy",
            "Share of pairs whose chosen answer has the higher reward.",
            (Line(accuracy(record), accuracy(record, HELDOUT_PREFIX)),),
            share=True,
            guide=(0.5, "chance"),
        ),
        Chart(
            "margin",
            "Reward margin",
            "Chosen reward minus rejected reward: how clearly the model tells the answers apart.",
            (_line(record, "rewards/margins"),),
        ),
        Chart(
            "rewards",
            "Rewards of both answers",
            "Good: chosen rises or stays, rejected falls. If both fall together, the model collapses.",
            _both(record, "rewards"),
        ),
        Chart(
            "logps",
            "Log-probabilities of both answers",
            "Of whole answers, in nats. Longer answers have lower values, so compare a curve only with itself.",
            _both(record, "logps"),
        ),
        Chart(
            "entropy",
            "Entropy",
            "Nats per token. After a steep fall a model often repeats itself.",
            (_line(record, "entropy"),),
        ),
        Chart(
            "gradient",
            "Gradient norm",
            "Before clipping. Spikes are steps that would have been too large.",
            (_line(record, "grad_norm"),),
            log=_has_spikes(record.metrics.get("grad_norm", [])),
        ),
        Chart(
            "memory",
            "Memory",
            "Peak so far, in GiB: of the GPU, or of the process on a CPU.",
            (Line(record.metrics.get("memory_gib", []), scatters=False),),
        ),
        Chart(
            "learning-rate",
            "Learning rate",
            "As set by the scheduler.",
            (Line(record.metrics.get("learning_rate", []), scatters=False),),
        ),
    ]
    return [chart for chart in every if any(line.training or line.heldout for line in chart.lines)]


def _line(record: RunRecord, metric: str) -> Line:
    return Line(record.metrics.get(metric, []), record.metrics.get(HELDOUT_PREFIX + metric, []))


def _both(record: RunRecord, kind: str) -> tuple[Line, Line]:
    chosen, rejected = (_line(record, f"{kind}/{side}") for side in ("chosen", "rejected"))
    return (
        replace(chosen, labels=("chosen", "chosen, held out")),
        replace(rejected, labels=("rejected", "rejected, held out"), tone="two"),
    )


def _chance_loss(record: RunRecord) -> tuple[float, str] | None:
    """The loss of a model that prefers neither answer, if the loss is plain DPO."""
    preference = record.config.get("preference", {})
    plain = preference.get("loss") in (["sigmoid"], "sigmoid") and preference.get("loss_weights") is None
    return (math.log(2), "ln 2: no preference") if plain else None


def _has_spikes(series: Series) -> bool:
    values = [value for _, value in finite(series)]
    return bool(values) and max(values) > SPIKE * median(values)
