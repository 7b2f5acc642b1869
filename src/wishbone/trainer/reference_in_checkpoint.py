"""A resumed run uses the frozen reference adapter of its checkpoint.

A checkpoint of this version belongs to one reference, which is checked (`fingerprint.py`). Those of 0.1.0 and of TRL
say nothing of it, but they hold the frozen adapter where the run had one. So a resumed run takes that one, or the base
model where there is none, whatever model it was constructed with.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import PeftModel, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import nn

from wishbone.engine.step import PreferenceStep
from wishbone.model.frozen_copy import FROZEN, drop_frozen
from wishbone.reference.reference import AdapterDisabled
from wishbone.trainer.start_check import uncached

logger = logging.getLogger(__name__)

DEFAULT = "default"
"""The adapter that PEFT saves in the directory itself."""


def take_reference(step: PreferenceStep, checkpoint: Path) -> None:
    """Switch the reference to the frozen adapter that a checkpoint names, after its adapters are loaded."""
    reference, model = uncached(step), step.policy.model
    if type(reference) is not AdapterDisabled or not isinstance(model, PeftModel):
        return
    if (checkpoint / FROZEN / SAFETENSORS_WEIGHTS_NAME).is_file():
        if not reference.adapters:
            logger.warning("The reference is the frozen adapter of %s, not the base model.", checkpoint)
        reference.switch_to(FROZEN)
    elif (checkpoint / SAFETENSORS_WEIGHTS_NAME).is_file() and reference.adapters:
        logger.warning("The reference is the base model, as in the run of %s.", checkpoint)
        drop_frozen(model)
        reference.switch_to(None)


def load_default_adapter(model: nn.Module, checkpoint: Path) -> None:
    """Load the adapter `default`, which PEFT saves beside the folders of others, such as frozen ones.

    transformers 5.17 loads the folders alone, so a resumed run would begin with an adapter that has learned nothing.
    """
    weights = checkpoint / SAFETENSORS_WEIGHTS_NAME
    beside = any(checkpoint.glob(f"*/{SAFETENSORS_WEIGHTS_NAME}"))
    if isinstance(model, PeftModel) and DEFAULT in model.peft_config and weights.is_file() and beside:
        set_peft_model_state_dict(model, load_file(weights), adapter_name=DEFAULT)


@contextmanager
def trained_as_before(model: nn.Module) -> Iterator[None]:
    """Context in which PEFT loads adapters, after which `requires_grad` of the base, which it resets, is restored."""
    learns = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    yield
    for parameter, was in learns:
        parameter.requires_grad_(was)
