"""NaN and infinity in training: the first step that has them, and refusals to save or continue from them.

One loss or gradient that is not finite makes every weight NaN at the next optimizer step, and all that follows is lost
time. On a GPU the host must not wait for each loss, so the device notes the first step that went wrong, and the host
asks where it waits anyway: at each log, before each checkpoint, at the end. On a CPU it asks at once, before the
optimizer steps.

Loss scaling explains one case. With float16 gradients of a scaled loss may overflow; the scaler then skips the step and
lowers the scale s. Gradients that overflow with s <= 1 overflow without scaling too. A loss is not scaled when it is
looked at, so no scaler explains it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from wishbone.errors import RequestError, RunError, some_of

_CHUNK = 2**24
"""Elements of an 8-bit tensor that are widened at a time."""


class NonFiniteError(RunError):
    """A loss or a gradient is NaN or infinite; the message names the step and what to change."""


class FiniteWatch:
    """What a trainer with `stop_on_non_finite` shows its weights, losses and gradients to.

    Of losses and gradients it notes the first optimizer step that went wrong, as one integer on the device: 0 for none,
    else twice the step, plus one for gradients.

    Args:
        on: whether it looks at any of them.
    """

    def __init__(self, on: bool) -> None:
        self._on = on
        self._note: Tensor | None = None

    def begin(self, on: bool) -> None:
        """Forget what an earlier run showed; `on` may have changed since construction."""
        self._on, self._note = on, None

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
        """Look at the loss of an optimizer step, a scalar, and return it.

        Raises:
            NonFiniteError: on a CPU, where it is not finite.
        """
        if self._on:
            self._see(loss, 2 * step)
        return loss

    def see_gradients(self, norm: Any, step: int, scaler: Any) -> Any:
        """Look at the norm of all gradients of an optimizer step, as transformers computes it, and return it.

        Raises:
            NonFiniteError: on a CPU, where it is not finite and the scaler of the loss, if any, does not explain it.
        """
        scale = scaler.get_scale() if scaler is not None and scaler.is_enabled() else None
        if self._on and norm is not None and (scale is None or scale <= 1):
            self._see(norm if isinstance(norm, Tensor) else torch.tensor(float(norm)), 2 * step + 1)
        return norm

    def _see(self, value: Tensor, code: int) -> None:
        value = value.detach()
        if value.device.type == "cpu":
            if not math.isfinite(value.item()):
                raise _error(code)
            return
        if self._note is None:
            self._note = torch.zeros((), dtype=torch.int64, device=value.device)
        self._note = torch.where((self._note == 0) & ~value.isfinite(), code, self._note)

    def check(self) -> None:
        """Wait for the device.

        Raises:
            NonFiniteError: a step went wrong.
        """
        if self._note is not None and (code := int(self._note.item())):
            self._note = None
            raise _error(code)

    def see_before_saving(self, model: nn.Module, step: int) -> None:
        """Look at everything that a checkpoint after `step` steps would hold, so that none has what is not finite.

        Raises:
            NonFiniteError: naming what is not finite.
        """
        if not self._on:
            return
        self.check()
        if names := _non_finite(model, trained=True):
            raise NonFiniteError(
                f"weights are not finite after step {step} ({len(names)}: {some_of(names)}), so training stopped and "
                "they are not saved; lower the learning rate"
            )

    def see_loaded(self, model: nn.Module, checkpoint: str) -> None:
        """Look at trained weights that were loaded from a checkpoint.

        Raises:
            RequestError: naming those that are not finite.
        """
        if self._on and (names := _non_finite(model, trained=True)):
            raise RequestError(
                f"{checkpoint} holds weights that are NaN or infinite ({len(names)}: {some_of(names)}), so nothing is "
                "built on them; delete this checkpoint, and the one before it is used"
            )


def _error(code: int) -> NonFiniteError:
    step, gradients = divmod(code, 2)
    what = "a gradient" if gradients else "the loss"
    return NonFiniteError(
        f"{what} of step {step} is not finite, so training stopped; lower the learning rate or beta, or compute in "
        "bfloat16 or float32 instead of float16"
    )


def refuse_non_finite(model: nn.Module, what: str = "the model") -> None:
    """Refuse a model with a parameter that is not finite. Parameters without memory (meta) are passed over.

    Raises:
        RequestError: naming the parameters.
    """
    names = _non_finite(model)
    if names:
        half = any(parameter.dtype == torch.float16 for parameter in model.parameters())
        range_ = ", or hold numbers above 65,504, which float16 cannot: load it in bfloat16 or float32" if half else ""
        raise RequestError(
            f"{what} has weights that are NaN or infinite ({len(names)}: {some_of(names)}); its files are damaged or "
            f"come from a training that diverged: load another copy{range_}"
        )


@torch.no_grad()
def _non_finite(model: nn.Module, *, trained: bool = False) -> list[str]:
    """Names of the floating-point parameters that hold NaN or infinity, as in the model's files."""
    largest: dict[torch.device, list[tuple[str, Tensor]]] = {}
    for name, parameter in model.named_parameters():
        if trained and not parameter.requires_grad:
            continue
        values = parameter.to_local() if hasattr(parameter, "to_local") else parameter.detach()
        if values.is_meta or not values.numel() or not values.is_floating_point():
            continue
        largest.setdefault(values.device, []).append((name, _magnitude(values)))
    found = []
    for entries in largest.values():
        finite = torch.stack([value for _, value in entries]).isfinite().tolist()
        found += [_file_name(name) for (name, _), sound in zip(entries, finite, strict=True) if not sound]
    return found


def _magnitude(values: Tensor) -> Tensor:
    """A scalar that is finite exactly where all values are; it takes no copy of them."""
    if values.element_size() == 1:
        flat = values.flatten()
        parts = [_magnitude(flat[start : start + _CHUNK].float()) for start in range(0, len(flat), _CHUNK)]
        return torch.stack(parts).abs().max()
    low, high = values.aminmax()
    return torch.maximum(low.abs(), high.abs()).float()


def _file_name(name: str) -> str:
    """The name of a parameter without what PEFT put around its layer."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")
