"""A frozen copy of what a model is now, which stays while the model learns: of its adapter, or of the whole model.

DPO compares the policy with the model that training started from. Where that is the base of an adapter, switching the
adapter off gives it back. Where it is not, a copy must be kept:

- an adapter that was trained before, or one whose initialization moves part of the base's weights into the adapter
  (PiSSA, OLoRA, CorDA, LoftQ), starts away from what is left of the base: a second, frozen adapter keeps its values;
- PEFT's `bias="all"` and parameters that a user unfroze are trained within the base itself, which no switch undoes:
  their values are kept beside the model and put in place for each reference pass;
- without an adapter the whole model is copied as it lies in memory, which may not be what lies on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy, deepcopy
from typing import Any

import torch
from accelerate.hooks import add_hook_to_module
from peft import PeftConfig, PeftModel, PeftType
from torch import Tensor, nn
from transformers import PreTrainedModel

from wishbone.errors import RequestError, one_line
from wishbone.model.adapter import copy_adapter
from wishbone.model.host_embedding import compute_device

FROZEN = "ref"
"""Name of the frozen adapter, which TRL gives it too."""

LEFT_BY_SYNCHRONIZATION = "ref_sync_"

START_AT_ZERO = frozenset({"lora_B", "lora_embedding_A"})
"""The factor of a LoRA layer, and of one of an embedding, that is zero in an adapter that adds nothing."""


def without_effect_on_base(config: PeftConfig) -> PeftConfig:
    """Return an adapter's configuration whose initialization neither reads nor changes the base, and trains no bias."""
    plain = copy(config)
    for field, value in (("init_lora_weights", True), ("bias", "none")):
        if hasattr(plain, field):
            setattr(plain, field, value)
    if not plain.is_prompt_learning:  # PEFT leaves out parts of a prompt encoder that is not to be trained
        plain.inference_mode = True
    return plain


def keep_adapter(model: PeftModel) -> None:
    """Add the adapter `FROZEN`, a copy of the active adapter as it is now; nothing else of the model changes.

    Raises:
        RequestError: PEFT allows no second adapter of this kind.
    """
    [active] = model.active_adapters
    add_frozen(model, model.peft_config[active])
    copy_adapter(model, active, FROZEN)


def add_frozen(model: PeftModel, config: PeftConfig) -> None:
    """Add the adapter `FROZEN` of this configuration; base weights and what is trained stay as they are.

    Raises:
        RequestError: PEFT allows no second adapter of this kind.
    """
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.add_adapter(FROZEN, without_effect_on_base(config))
    except (ValueError, NotImplementedError, TypeError) as error:
        raise RequestError(
            f"the reference is a frozen copy of the adapter, and PEFT allows no second {config.peft_type.value} "
            f"adapter ({one_line(error)}); merge the adapter into its base and give that with a peft_config, or give a "
            "ref_model"
        ) from error
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter, learns in trained:
        parameter.requires_grad_(learns)


@contextmanager
def second_adapter_harmless(model: Any, *, read: bool = True) -> Iterator[None]:
    """Context in which a second adapter that TRL adds to `model` leaves the model as it is.

    TRL adds it with the first one's configuration, so PiSSA would split the base's weights once more, and copies the
    first one's values into it.

    Args:
        model: what TRL's trainer gets; without PEFT's adapters nothing happens.
        read: whether the second adapter will be the reference. One that will not is not made, and TRL copies the first
            adapter into itself.
    """
    if not isinstance(model, PeftModel):
        yield
        return

    def add_adapter(name: str, config: PeftConfig, **_: Any) -> None:
        assert name == FROZEN
        del model.add_adapter
        if read:
            add_frozen(model, config)
            return
        first = {name.replace(".default.", f".{FROZEN}."): own for name, own in model.named_parameters()}
        model.get_parameter = first.__getitem__

    model.add_adapter = add_adapter
    try:
        yield
    finally:
        for name in ("add_adapter", "get_parameter"):
            vars(model).pop(name, None)


def drop_frozen(model: PeftModel) -> list[str]:
    """Delete the frozen adapters that an earlier trainer left, and return their names."""
    left = [name for name in model.peft_config if name == FROZEN or name.startswith(LEFT_BY_SYNCHRONIZATION)]
    left = [name for name in left if name not in model.active_adapters]
    for name in left:
        model.delete_adapter(name)
    return left


def starts_as_base(model: PeftModel) -> bool:
    """Return whether a new adapter changes nothing yet, so that the model with its adapter off is the model.

    LoRA changes nothing while one of its factors is zero; of other methods both forms are run once. Weights that are
    not in memory (sharded ones) count as zero, as in TRL.
    """
    [active] = model.active_adapters
    config = model.peft_config[active]
    if config.is_prompt_learning:
        return False
    if config.peft_type == PeftType.LORA:
        named = ((set(name.split(".")), parameter) for name, parameter in model.named_parameters())
        zeros = [p for parts, p in named if active in parts and not parts.isdisjoint(START_AT_ZERO)]
        return not any(parameter.any() for parameter in zeros if parameter.numel())
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            ids = torch.arange(5, 37, device=compute_device(model)).remainder(_vocabulary(model))[None]
            own: Tensor = model(input_ids=ids, use_cache=False).logits.double()
            with model.disable_adapter():
                base: Tensor = model(input_ids=ids, use_cache=False).logits.double()
    finally:
        model.train(was_training)
    return bool((own - base).norm() <= torch.finfo(model.dtype).eps * base.norm())


class StartValues:
    """Trained parameters that belong to the base, with the values that they had when training started.

    Args:
        parameters: by their names in the model.

    Attributes:
        values: copies of the values, by name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(parameters)
        self.values = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Context in which the parameters have the values of the start; then they are bitwise what they were."""
        now = [parameter.detach().clone() for parameter in self._parameters.values()]
        try:
            for name, parameter in self._parameters.items():
                parameter.data.copy_(self.values[name])
            yield
        finally:
            for parameter, value in zip(self._parameters.values(), now, strict=True):
                parameter.data.copy_(value)


def copied_model(model: PreTrainedModel) -> PreTrainedModel:
    """Return a frozen copy of a model as it is in memory, on the same devices.

    A forward pass that an earlier trainer put on the model itself is not copied: TRL's would run the model instead of
    the copy.
    """
    copied = deepcopy(model)
    own = vars(copied)
    for name in ("forward", "_original_forward", "_old_forward"):
        own.pop(name, None)
    if (hook := own.pop("_hf_hook", None)) is not None:
        add_hook_to_module(copied, hook)
    return copied.requires_grad_(False).eval()


def stand_in(model: PreTrainedModel) -> PreTrainedModel:
    """Return a frozen model over the same tensors, for code that needs a second model and never runs it.

    It takes no memory of its own and changes when the model learns.
    """
    frozen = {id(own): nn.Parameter(own.detach(), requires_grad=False) for own in model.parameters()}
    return deepcopy(model, frozen | {id(own): own for own in model.buffers()})


def is_whole_in_memory(model: nn.Module) -> bool:
    """Return whether all weights are in this process's memory; DeepSpeed's ZeRO-3 and meta tensors are not."""
    return not any(parameter.is_meta or hasattr(parameter, "ds_id") for parameter in model.parameters())


def _vocabulary(model: PeftModel) -> int:
    return int(model.get_base_model().config.get_text_config().vocab_size)
