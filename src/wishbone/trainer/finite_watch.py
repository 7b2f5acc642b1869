"""Training stops where weights, losses or gradients are not finite, before anything is built on them.

`non_finite.py` says what counts. A checkpoint is written only after a look at everything that led to it, so those on
the disk are finite, and none of them is pushed out by one that is not.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from wishbone.trainer.non_finite import (
    FirstNonFinite,
    check_trained,
    refuse_non_finite,
    refuse_non_finite_checkpoint,
)


class FiniteWatch:
    """What a trainer with `stop_on_non_finite` shows its weights, losses and gradients to.

    Args:
        on: whether it looks at any of them.
    """

    def __init__(self, on: bool) -> None:
        self._on = on
        self._first = FirstNonFinite()

    def begin(self) -> None:
        """Forget what an earlier run showed."""
        self._first = FirstNonFinite()

    def see_models(self, model: nn.Module, reference: Any) -> None:
        """Look at the model and at the reference model, if there is one, before training.

        Raises:
            RequestError: one has weights that are not finite.
        """
        if self._on:
            refuse_non_finite(model)
            if isinstance(reference, nn.Module):
                refuse_non_finite(reference, "the reference model")

    def see_loss(self, loss: Tensor, step: int) -> Tensor:
        """Return the loss of an optimizer step, a scalar; note on its device whether it is finite."""
        if self._on:
            self._first.see_loss(loss, step)
        return loss

    def see_gradients(self, norm: Any, step: int, scaler: Any) -> Any:
        """Return the norm of all gradients of an optimizer step; note on its device whether it is finite.

        Args:
            norm: as transformers computes it.
            step: the number of the step.
            scaler: of the loss, in float16, or None.
        """
        if self._on:
            scale = scaler.get_scale() if scaler is not None and scaler.is_enabled() else None
            self._first.see_gradients(norm, step, scale)
        return norm

    def see_loaded(self, model: nn.Module, checkpoint: str) -> None:
        """Look at trained weights that were loaded from a checkpoint.

        Raises:
            RequestError: they are not finite.
        """
        if self._on:
            refuse_non_finite_checkpoint(model, checkpoint)

    def see_before_saving(self, model: nn.Module, step: int) -> None:
        """Look at everything that a checkpoint after `step` steps would hold.

        Raises:
            NonFiniteError: something is not finite.
        """
        if self._on:
            self._first.check()
            check_trained(model, step)

    def check(self) -> None:
        """Wait for the device, and read what was noted there.

        Raises:
            NonFiniteError: a loss or a gradient was not finite.
        """
        self._first.check()
