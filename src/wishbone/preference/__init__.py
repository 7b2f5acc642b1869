"""Losses and metrics of preference pairs: pure functions of log-probabilities.

Tensors of log-probabilities in, tensors out; nothing here knows how a model is run or how a batch is laid out.
"""

from __future__ import annotations

from wishbone.preference.losses import (
    COUPLED,
    F_DIVERGENCE_LOSSES,
    LOSSES,
    REFERENCE_FREE,
    check_losses,
    preference_loss,
)
from wishbone.preference.scores import LossParameters, PairScores, ld_weights, wpo_weight

__all__ = [
    "COUPLED",
    "F_DIVERGENCE_LOSSES",
    "LOSSES",
    "REFERENCE_FREE",
    "LossParameters",
    "PairScores",
    "check_losses",
    "ld_weights",
    "preference_loss",
    "wpo_weight",
]
