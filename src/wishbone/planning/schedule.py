"""How many optimizer steps a run has.

    pairs a step = batch_size * gradient_accumulation, whatever the number of processes
    steps        = max_steps, or ceil(epochs * ceil(micro-steps of an epoch / gradient_accumulation))

The last step of an epoch takes what is left of the pairs, so every epoch has whole steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from wishbone.config.schema import TrainingConfig


@dataclass(frozen=True)
class Schedule:
    """Length of a run.

    Attributes:
        pairs_a_step: preference pairs in a full optimizer step.
        steps: optimizer steps of the whole run.
        warmup_steps: steps in which the learning rate rises.
        epochs: passes over the pairs, a fraction where the run ends within one.
    """

    pairs_a_step: int
    steps: int
    warmup_steps: int
    epochs: float


def schedule(pairs: int, training: TrainingConfig) -> Schedule:
    """Length of a run over `pairs` (at least 1) preference pairs."""
    micro_steps = ceil(pairs / training.batch_size)
    steps_an_epoch = ceil(micro_steps / training.gradient_accumulation)
    steps = training.max_steps or ceil(training.epochs * steps_an_epoch)
    return Schedule(
        pairs_a_step=training.batch_size * training.gradient_accumulation,
        steps=steps,
        warmup_steps=ceil(steps * training.warmup_ratio),
        epochs=steps / steps_an_epoch if training.max_steps else training.epochs,
    )
