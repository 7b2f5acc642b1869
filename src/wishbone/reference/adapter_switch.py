"""Adapters off, and on again, for the reference pass of every row.

PEFT's `disable_adapter()` also walks over all modules of the model and clears and sets `requires_grad` of every adapter
weight: 26 ms for a model of 32 layers, in which a GPU waits. A reference pass runs without gradients, so the flag that
each layer asks about at every call is enough, and so is the name of the adapter that is on. That each layer does ask is
checked once; where one does not, PEFT's own way is taken.

A frozen copy of a fresh adapter has B = 0: the model with it is the model without, which is faster to switch to and to
run. `EmptyAdapters` finds that out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

OFF, ACTIVE = "_disable_adapters", "_active_adapter"


class AdapterSwitch:
    """Switches the adapters of a model for passes without gradient.

    Args:
        model: with its adapters; layers that get an adapter later are not switched.
    """

    def __init__(self, model: PeftModel) -> None:
        self._model = model
        self._layers = [m for m in model.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
        self._asks_whether = bool(self._layers) and all(map(_asks_whether, self._layers))
        self._asks_which = bool(self._layers) and all(map(_asks_which, self._layers))

    @contextmanager
    def off(self) -> Iterator[None]:
        """Context in which the model is its base model."""
        with self._set(OFF, True) if self._asks_whether else self._model.disable_adapter():
            yield

    @contextmanager
    def only(self, adapters: Sequence[str]) -> Iterator[None]:
        """Context in which these adapters are on, and no others."""
        if self._asks_which:
            with self._set(ACTIVE, list(adapters)):
                yield
            return
        trained = self._model.active_adapter
        trainable = [p for p in self._model.parameters() if p.requires_grad]
        self._model.base_model.set_adapter(list(adapters))
        try:
            yield
        finally:
            self._model.set_adapter(trained)
            for parameter in self._model.parameters():
                parameter.requires_grad_(False)
            for parameter in trainable:
                parameter.requires_grad_(True)

    @contextmanager
    def _set(self, name: str, value: Any) -> Iterator[None]:
        before = [vars(layer)[name] for layer in self._layers]
        try:
            for layer in self._layers:
                vars(layer)[name] = value
            yield
        finally:
            for layer, own in zip(self._layers, before, strict=True):
                vars(layer)[name] = own


class EmptyAdapters:
    """Tells whether adapters add nothing: LoRA whose B is zero everywhere.

    Args:
        model: with its adapters; layers that get an adapter later are not seen.
    """

    def __init__(self, model: PeftModel) -> None:
        self._model = model
        self._layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
        self._looked_at: tuple[Any, ...] | None = None
        self._found = False

    def are(self, adapters: Sequence[str]) -> bool:
        """Return whether none of the adapters adds anything; values are looked at where they may have changed."""
        looked_at = (*adapters, *(version for layer in self._layers for version in _versions(layer, adapters)))
        if looked_at != self._looked_at:
            self._looked_at, self._found = looked_at, self._look(adapters)
        return self._found

    def _look(self, adapters: Sequence[str]) -> bool:
        seconds = []
        for name, parameter in self._model.named_parameters():
            parts = name.split(".")
            if set(adapters).isdisjoint(parts):
                continue
            if "lora_B" in parts:
                seconds.append(parameter)
            elif "lora_A" not in parts:
                return False  # more than two factors: a bias, a magnitude, a module that is trained whole
        whole = all(parameter.numel() > 0 for parameter in seconds)  # as opposed to one that is kept elsewhere
        return bool(seconds) and whole and not any(parameter.any() for parameter in seconds)


def _versions(layer: BaseTunerLayer, adapters: Sequence[str]) -> Iterator[tuple[int, int]]:
    """What changes when the B of an adapter in a layer gets other values."""
    factors = layer._modules.get("lora_B")
    for adapter in adapters if factors is not None else ():
        factor = factors._modules.get(adapter)
        for parameter in factor._parameters.values() if factor is not None else ():
            if parameter is not None:
                yield id(parameter), parameter._version


def _asks_whether(layer: nn.Module) -> bool:
    """Whether a layer's public `disable_adapters` is the flag, in both of its states."""
    own: dict[str, Any] = vars(layer)
    if not isinstance(own.get(OFF), bool) or getattr(layer, "merged", False):
        return False
    before = own[OFF]
    answers = []
    for own[OFF] in (False, True):
        answers.append(getattr(layer, "disable_adapters", None))
    own[OFF] = before
    return answers == [False, True]


def _asks_which(layer: nn.Module) -> bool:
    """Whether a layer's public `active_adapters` is the list that was set; wrappers of whole modules hold only one."""
    own: dict[str, Any] = vars(layer)
    if not isinstance(layer, BaseTunerLayer) or ACTIVE not in own or layer.merged:
        return False
    before = own[ACTIVE]
    own[ACTIVE] = ["one", "two"]
    answer = layer.active_adapters
    own[ACTIVE] = before
    return bool(answer == ["one", "two"])
