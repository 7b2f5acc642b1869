"""Adapters off, and on again, for the reference pass of every row.

PEFT's `disable_adapter()` also walks over all modules of the model and clears and sets `requires_grad` of every adapter
weight: 26 ms for a model of 32 layers, in which a GPU waits. A reference pass runs without gradients, so the flag that
each layer asks about at every call is enough. That each layer does ask is checked once; where one does not, PEFT's own
way is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

FLAG = "_disable_adapters"


class AdapterSwitch:
    """Switches all adapters of a model off for passes without gradient.

    Args:
        model: with its adapters; layers that get an adapter later are not switched.
    """

    def __init__(self, model: PeftModel) -> None:
        self._model = model
        self._layers = [m for m in model.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
        self._known = bool(self._layers) and all(map(_asks_the_flag, self._layers))

    @contextmanager
    def off(self) -> Iterator[None]:
        """Context in which the model is its base model."""
        if not self._known:
            with self._model.disable_adapter():
                yield
            return
        before = [vars(layer)[FLAG] for layer in self._layers]
        try:
            for layer in self._layers:
                vars(layer)[FLAG] = True
            yield
        finally:
            for layer, flag in zip(self._layers, before, strict=True):
                vars(layer)[FLAG] = flag


def _asks_the_flag(layer: nn.Module) -> bool:
    """Whether a layer's public `disable_adapters` is the flag, in both of its states."""
    own: dict[str, Any] = vars(layer)
    if not isinstance(own.get(FLAG), bool) or getattr(layer, "merged", False):
        return False
    before = own[FLAG]
    answers = []
    for own[FLAG] in (False, True):
        answers.append(getattr(layer, "disable_adapters", None))
    own[FLAG] = before
    return answers == [False, True]
