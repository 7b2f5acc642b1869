"""An adapter on the output head, which TRL refuses because its own path multiplies by the head's weight alone.

Wishbone's step calls an adapted head as a module (`Policy`), so its adapter takes part and is trained. TRL checks the
head while a trainer is constructed; meanwhile the model says that it has no head.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel, set_seed

from wishbone.errors import RequestError

HEAD_NAMES = ("lm_head", "embed_out")
"""Names of output heads, for models that are given by name and not loaded yet."""


def adapts_head(model: str | nn.Module, peft_config: Any, liger: bool) -> bool:
    """Return whether an adapter's configuration names the model's output head, so that Wishbone has to add it.

    With `liger` (use_liger_kernel) it is left to TRL, which refuses it: TRL puts that library's layers in.

    Raises:
        RequestError: it does and `model` is a name: the adapter must be added before TRL sees the model.
    """
    targets = getattr(peft_config, "target_modules", None)
    if liger or targets is None or targets == "all-linear":
        return False
    if isinstance(model, str):
        if not isinstance(targets, str) and not set(HEAD_NAMES).isdisjoint(targets):
            raise RequestError(
                f"peft_config puts an adapter on the output head of {model!r}, a model that is not loaded yet; "
                "load it with AutoModelForCausalLM.from_pretrained and give the trainer the model itself"
            )
        return False
    if not isinstance(model, PreTrainedModel) or isinstance(model, PeftModel):
        return False
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if module is head]
    if isinstance(targets, str):
        return any(re.fullmatch(targets, name) for name in names)
    return any(name == target or name.endswith(f".{target}") for name in names for target in targets)


def add_adapter_on_head(model: PreTrainedModel, peft_config: Any, seed: int) -> PeftModel:
    """Return the model with its adapter, with the same random values as TRL would draw."""
    set_seed(seed)
    return get_peft_model(model, peft_config)


def head_is_adapted(model: str | nn.Module, liger: bool) -> bool:
    """Return whether a model has an adapter on its output head that TRL must not see (`liger` as above)."""
    return (
        isinstance(model, PeftModel)
        and not liger
        and isinstance(model.get_base_model().get_output_embeddings(), BaseTunerLayer)
    )


@contextmanager
def head_hidden(model: PeftModel) -> Iterator[None]:
    """Context in which a model says that it has no output head."""
    causal_lm = model.get_base_model()
    causal_lm.get_output_embeddings = lambda: None
    try:
        yield
    finally:
        del causal_lm.get_output_embeddings
