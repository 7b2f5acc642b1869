"""When a remembered reference is written to its store, and what the run says about it.

Reading new values waits for the device, so they are written every few seconds at the end of a step, and where the
trainer waits anyway: before a checkpoint, after an evaluation, at the end.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from wishbone.engine.distributed import sum_over_processes
from wishbone.policy.policy import Policy
from wishbone.reference.cache import Remembered, remembered
from wishbone.reference.reference import ReferencePolicy

if TYPE_CHECKING:
    from wishbone.trainer.trainer import DPOTrainer

logger = logging.getLogger(__name__)


class KeepReference(TrainerCallback):  # type: ignore[misc]
    """Flushes a remembered reference and says at the end of training what it saved."""

    def __init__(self, reference: Remembered) -> None:
        self._reference = reference

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """See whether the reference is still the one whose values are remembered."""
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
        """Write the rest, close the store until somebody asks again, and say in one line what was reused."""
        self._reference.flush()
        self._reference.store.close()
        logger.info(
            "Reference log-probabilities: %d pairs computed, %d times a known one reused (%s).",
            self._reference.computed,
            self._reference.reused,
            self._reference.store.path,
        )


def keep_reference(
    trainer: DPOTrainer, reference: ReferencePolicy, policy: Policy, adapters: Sequence[str] = ()
) -> ReferencePolicy:
    """Return a trainer's reference as one that remembers, where its arguments ask for that and it is right.

    Args:
        trainer: its `args.reference_store` says where values are kept; it gets the callback that writes them.
        reference: computes the values.
        policy: what `reference` runs.
        adapters: frozen adapters that are on in it.

    Raises:
        RequestError: a file was asked for, and the values of this reference cannot be kept.
    """
    kept = remembered(
        reference,
        policy,
        asked=trainer.args.reference_store,
        trained=trainer.model,
        adapters=adapters,
        moves=trainer.args.sync_ref_model,
        ld_alpha=trainer.args.ld_alpha,
        autocast=trainer.accelerator.autocast,
    )
    if isinstance(kept, Remembered):
        trainer.add_callback(KeepReference(kept))
    return kept


def reference_use(trainer: DPOTrainer) -> dict[str, int]:
    """Return how many pairs' values all processes `computed`, and how often a known one was `reused`.

    Empty where nothing is remembered. Every process must call at the same time.
    """
    reference = trainer.preference_step.reference if trainer.preference_step else None
    if not isinstance(reference, Remembered):
        return {}
    counts = {"reused": reference.reused, "computed": reference.computed}
    return {name: sum_over_processes(count, trainer.accelerator) for name, count in counts.items()}
