"""TR-DPO's schedule for a reference made of adapters: when it is moved toward the policy.

TRL's callback moves a second model. With an adapter there is no second model, and `SynchronizedAdapter` is moved.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from wishbone.reference.synchronized import SynchronizedAdapter
from wishbone.trainer.arguments import DPOConfig


class Synchronization(TrainerCallback):  # type: ignore[misc]
    """Moves the reference `ref_model_mixup_alpha` of the way every `ref_model_sync_steps` optimizer steps."""

    def __init__(self, reference: SynchronizedAdapter) -> None:
        self._reference = reference

    def on_step_end(self, args: DPOConfig, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the reference if it is due after this step."""
        if state.global_step % args.ref_model_sync_steps == 0:
            self._reference.synchronize(args.ref_model_mixup_alpha)
