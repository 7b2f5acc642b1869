"""TRL's trainer that stops where weights, losses or gradients are not finite, before anything is built on them.

`non_finite.py` says what counts. A checkpoint is written only after a look at everything that led to it, so those on
the disk are finite, and none of them is pushed out by one that is not.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from trl.trainer.dpo_trainer import DPOTrainer as TRLDPOTrainer

from wishbone.trainer.arguments import DPOConfig
from wishbone.trainer.non_finite import (
    FirstNonFinite,
    check_trained,
    refuse_non_finite,
    refuse_non_finite_checkpoint,
)


class FiniteTrainer(TRLDPOTrainer):  # type: ignore[misc]
    """TRL's trainer with `stop_on_non_finite`."""

    args: DPOConfig

    def _refuse_non_finite_weights(self) -> None:
        """Prepare for training, once TRL has constructed itself.

        Raises:
            RequestError: the model or the reference model has weights that are not finite.
        """
        self._first_non_finite = FirstNonFinite()
        if self.args.stop_on_non_finite:
            refuse_non_finite(self.model)
            if isinstance(self.ref_model, nn.Module):
                refuse_non_finite(self.ref_model, "the reference model")

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as transformers does.

        Raises:
            NonFiniteError: a loss or a gradient is NaN or infinite, unless `stop_on_non_finite` is off.
        """
        self._first_non_finite = FirstNonFinite()
        output = super().train(*args, **kwargs)
        self._first_non_finite.check()
        return output

    def check_finite(self, loss: Tensor) -> Tensor:
        """Return the loss of the current step, a scalar; note on its device whether it is finite."""
        if self.args.stop_on_non_finite:
            self._first_non_finite.see_loss(loss, self.state.global_step + 1)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Return transformers' norm of all gradients; note on its device whether it is finite."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.args.stop_on_non_finite:
            scaler = self.accelerator.scaler
            scale = scaler.get_scale() if scaler is not None and scaler.is_enabled() else None
            self._first_non_finite.see_gradients(norm, self.state.global_step + 1, scale)
        return norm

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load as transformers does, and refuse trained weights that are not finite."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.args.stop_on_non_finite:
            refuse_non_finite_checkpoint(self.model if model is None else model, resume_from_checkpoint)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint, unless there is anything in it that is not finite."""
        if self.args.stop_on_non_finite:
            self._first_non_finite.check()
            check_trained(self.model, self.state.global_step)
        super()._save_checkpoint(model, trial)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as TRL does, which waits for the device; then read what was noted there."""
        super().log(logs, start_time)
        if self.model.training:
            self._first_non_finite.check()
