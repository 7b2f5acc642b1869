"""When cached reference values are written to the store, and what the run says about them.

Reading new values waits for the device. So they are written every few seconds at the end of a step, and where the
trainer waits anyway: before a checkpoint, after an evaluation, at the end.
"""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from wishbone.errors import counted
from wishbone.reference.cache import CachedReference

logger = logging.getLogger(__name__)


class ReferenceStoreCallback(TrainerCallback):  # type: ignore[misc]
    """Writes a cached reference's new values to its store, and reports at the end how many were computed."""

    def __init__(self, reference: CachedReference) -> None:
        self._reference = reference

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Check whether the cached values are still those of this reference."""
        self._reference.begin()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write what the last seconds computed."""
        self._reference.flush_if_due()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write, so that a run resumed from the checkpoint finds the values."""
        self._reference.flush()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write what the evaluation computed."""
        self._reference.flush()

    def on_predict(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any, **_: Any
    ) -> None:
        """Write what the prediction computed."""
        self._reference.flush()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write the rest, close the store until its next use, and log how many values were reused."""
        self._reference.flush()
        self._reference.store.close()
        logger.info(
            "Reference log-probabilities: %s computed, %d reused (%s).",
            counted(self._reference.computed, "pair"),
            self._reference.reused,
            self._reference.store.path,
        )
