"""Switches a model's adapters off and on again for the reference pass of each row.

PEFT's `disable_adapter()` also visits every module and clears and sets `requires_grad` of every adapter weight. That
takes 26 ms for a model of 32 layers, while the GPU waits. A reference pass runs without gradients, so it is enough to
set the flag, or the names of the active adapters, that each layer reads at every call. Whether each layer does read
them is checked once; if one does not, PEFT's own way is taken.

A frozen copy of a fresh adapter has B = 0 and adds nothing, so the reference is the base model, which is faster to
switch to and to run. `EmptyAdapterCheck` finds out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from wishbone.fused.lora_layer import ACTIVE, OFF


class AdapterSwitch:
    """Switches the adapters of a model for passes without gradient.

    Args:
        model: with its adapters; layers that get an adapter later are not switched.

    Attributes:
        by_flag: whether every layer follows the flag that says whether its adapters are off.
        by_name: whether every layer follows the names of its active adapters.
    """

    def __init__(self, model: PeftModel) -> None:
        self._model = model
        self._layers = [m for m in model.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
        self.by_flag = bool(self._layers) and all(map(_reads_flag, self._layers))
        self.by_name = bool(self._layers) and all(map(_reads_names, self._layers))

    @contextmanager
    def off(self) -> Iterator[None]:
        """Context in which the model is its base model."""
        with self._set(OFF, True) if self.by_flag else self._model.disable_adapter():
            yield

    @contextmanager
    def only(self, adapters: Sequence[str]) -> Iterator[None]:
        """Context in which only these adapters are on."""
        if self.by_name:
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


class EmptyAdapterCheck:
    """Checks whether adapters add nothing: LoRA whose B is zero everywhere.

    Args:
        model: with its adapters; layers that get an adapter later are not checked.
    """

    def __init__(self, model: PeftModel) -> None:
        self._model = model
        self._layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
        self._checked: tuple[Any, ...] | None = None
        self._empty = False

    def empty(self, adapters: Sequence[str]) -> bool:
        """Return whether no adapter of `adapters`, all frozen, adds anything; values are read where they may be new.

        For an adapter that is trained, ask `empty_now`: a fused optimizer changes values, but no version of a tensor.
        """
        checked = (*adapters, *(version for layer in self._layers for version in _versions(layer, adapters)))
        if checked != self._checked:
            self._checked, self._empty = checked, self.empty_now(adapters)
        return self._empty

    def empty_now(self, adapters: Sequence[str]) -> bool:
        """Return whether no adapter of `adapters` adds anything, by their values."""
        factors = []
        for name, parameter in self._model.named_parameters():
            parts = name.split(".")
            if set(adapters).isdisjoint(parts):
                continue
            if "lora_B" in parts:
                factors.append(parameter)
            elif "lora_A" not in parts:
                return False  # more than two factors: a bias, a magnitude, a module that is trained whole
        in_memory = all(parameter.numel() > 0 for parameter in factors)  # sharded weights leave empty tensors
        return bool(factors) and in_memory and not any(parameter.any() for parameter in factors)


def _versions(layer: BaseTunerLayer, adapters: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield what changes when the B of an adapter in a layer gets other values."""
    factors = layer._modules.get("lora_B")
    for adapter in adapters if factors is not None else ():
        factor = factors._modules.get(adapter)
        for parameter in factor._parameters.values() if factor is not None else ():
            if parameter is not None:
                yield id(parameter), parameter._version


def _reads_flag(layer: nn.Module) -> bool:
    """Return whether a layer's public `disable_adapters` follows the flag."""
    own: dict[str, Any] = vars(layer)
    if not isinstance(own.get(OFF), bool) or getattr(layer, "merged", False):
        return False
    before = own[OFF]
    answers = []
    for own[OFF] in (False, True):
        answers.append(getattr(layer, "disable_adapters", None))
    own[OFF] = before
    return answers == [False, True]


def _reads_names(layer: nn.Module) -> bool:
    """Return whether a layer's public `active_adapters` is the list that was set (module wrappers hold one name)."""
    own: dict[str, Any] = vars(layer)
    if not isinstance(layer, BaseTunerLayer) or ACTIVE not in own or layer.merged:
        return False
    before = own[ACTIVE]
    own[ACTIVE] = ["one", "two"]
    answer = layer.active_adapters
    own[ACTIVE] = before
    return bool(answer == ["one", "two"])
