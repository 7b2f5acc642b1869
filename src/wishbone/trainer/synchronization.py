"""When a reference that follows the policy is moved: TR-DPO's schedule, for a reference made of adapters.

TRL's callback moves a second model; with an adapter there is none, and `SynchronizedAdapter` does it.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from wishbone.errors import RequestError
from wishbone.reference.synchronized import SynchronizedAdapter
from wishbone.trainer.arguments import DPOConfig


class Synchronization(TrainerCallback):  # type: ignore[misc]
    """Moves the reference `ref_model_mixup_alpha` of the way every `ref_model_sync_steps` optimizer steps."""

    def __init__(self, reference: SynchronizedAdapter) -> None:
        self._reference = reference

    def on_step_end(self, args: DPOConfig, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move it if this step is one to do so."""
        if state.global_step % args.ref_model_sync_steps == 0:
            self._reference.synchronize(args.ref_model_mixup_alpha)


def refuse_stale_reference(config: DPOConfig | None, *, head_adapted: bool, synchronized: bool) -> None:
    """Refuse reference values computed beforehand where they would be wrong or cannot be had.

    Raises:
        RequestError: `precompute_ref_log_probs` with a reference that moves, or with an adapter on the output head.
    """
    if config is None or not config.precompute_ref_log_probs:
        return
    problems = []
    if synchronized:
        problems.append("sync_ref_model moves the reference that precompute_ref_log_probs takes for fixed; choose one")
    if head_adapted:
        problems.append(
            "precompute_ref_log_probs runs TRL's own path, which has no adapters on the output head; leave it out: "
            "reference values are kept for later epochs and runs as they are computed"
        )
    if problems:
        raise RequestError(problems)
