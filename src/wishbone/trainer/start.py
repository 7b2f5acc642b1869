"""The reference of a run without `ref_model`: the model that training starts from.

    no adapter                              a copy of the model as it is in memory; where no loss reads it, no copy
    new adapter that changes nothing yet    the model with its adapter off
    any other adapter                       the model with a frozen copy of the adapter, as in TRL
    trained parameters outside adapters     their first values, put in place for each reference pass

TRL reads the reference of a model without adapter from disk, and takes the adapter off whenever a `peft_config` was
given; both are other models where the model was changed in memory or where the adapter's initialization changed the
base. So the reference is settled here, before and after TRL's constructor, and compared with the policy before the
first optimizer step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from wishbone.errors import RequestError, some_of
from wishbone.model.adapter import copy_adapter
from wishbone.model.frozen_copy import (
    FROZEN,
    StartValues,
    copied_model,
    drop_frozen,
    is_whole_in_memory,
    keep_adapter,
    stand_in,
    starts_as_base,
)
from wishbone.preference.losses import are_reference_free
from wishbone.reference.reference import has_empty_adapter
from wishbone.reference.weights import base_tensors
from wishbone.trainer.arguments import DPOConfig

SOMETHING_TRAINED = (
    "load an adapter with PeftModel.from_pretrained(..., is_trainable=True), or unfreeze what is to learn"
)

STARTS_AS_BASE = (True, "gaussian", "eva")
"""Values of PEFT's `init_lora_weights` with which a new adapter adds nothing and leaves the base as it is."""

DIVIDING = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
"""What `accelerate launch` sets where models are divided, so that two of them must not have the same tensors."""

LEAST_DIFFERENCE = 1e-4
"""Nats a token that are called rounding in any precision."""

STEPS_OF_ROUNDING = 4
"""Steps of a dtype at the mean log-probability of a token that are called rounding."""

logger = logging.getLogger(__name__)


def refuse_untrainable(model: Any) -> None:
    """Refuse a model in which nothing, or nothing that runs, would learn; names of models are not looked at.

    Raises:
        RequestError: with what is frozen, merged or switched off.
    """
    if not isinstance(model, nn.Module):
        return
    learns = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if isinstance(model, PeftModel):
        _refuse_adapters_that_do_not_run(model, learns)
    if not learns:
        what = "the adapter is frozen" if isinstance(model, PeftModel) else "all weights are frozen"
        raise RequestError(f"nothing of the model can be trained: {what}; {SOMETHING_TRAINED}")


def refuse_shared_reference(model: Any, ref_model: Any) -> None:
    """Refuse a reference that holds trained tensors: it would change with the policy, and nothing would be learned.

    `get_peft_model` puts its layers into the model that it is given, so that model is no copy.

    Raises:
        RequestError: with the first tensors that both have.
    """
    if model is ref_model or not (isinstance(model, nn.Module) and isinstance(ref_model, nn.Module)):
        return  # TRL refuses one model for both
    held = {_storage(parameter) for parameter in ref_model.parameters()} - {0}
    shared = [n for n, p in model.named_parameters() if p.requires_grad and _storage(p) in held]
    if shared:
        raise RequestError(
            f"ref_model and model share tensors that are trained ({some_of(shared)}), so the reference would change "
            "with the policy: get_peft_model changes the model that it is given and makes no copy. Leave ref_model "
            "out (the reference is then the model as training starts), or load it a second time"
        )


def _storage(tensor: Tensor) -> int:
    """Where a tensor's memory begins; 0 for one without any."""
    return 0 if tensor.is_meta else tensor.untyped_storage().data_ptr()


def _refuse_adapters_that_do_not_run(model: PeftModel, learns: Sequence[str]) -> None:
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if any(layer.merged for layer in layers):
        raise RequestError(
            "the adapter is merged into its base, so it cannot be trained, nor switched off for the reference; call "
            "unmerge_adapter(), or train the model that merge_and_unload() returns, with a peft_config"
        )
    if len(model.active_adapters) > 1:
        raise RequestError(
            f"{len(model.active_adapters)} adapters are active ({some_of(model.active_adapters)}), and the reference "
            "is a copy of one; merge those that stay as they are into the base and set_adapter the one to train"
        )
    idle = set(model.peft_config) - set(model.active_adapters)
    if learns and all(not idle.isdisjoint(name.split(".")) for name in learns):
        raise RequestError(
            f"the active adapter {model.active_adapters[0]!r} is frozen, and only adapters that are not active can be "
            f"trained ({some_of(sorted(idle))}); call set_adapter with the one to train"
        )


def reference_of_start(model: Any, ref_model: Any, args: DPOConfig, *, adapter_added: bool) -> Any:
    """Return the reference model to construct TRL's trainer with, and delete the frozen adapters of an earlier trainer.

    Args:
        model: the model or its name, as the trainer got it.
        ref_model: a second model as the reference, or None.
        args: the trainer's configuration.
        adapter_added: whether the trainer will put an adapter on the model.
    """
    if ref_model is not None:
        return ref_model
    if isinstance(model, PeftModel):
        if left := drop_frozen(model):
            logger.warning(
                "The model comes with frozen adapters of an earlier trainer (%s): they are replaced by a copy of %r as "
                "it is now, which is the reference.",
                ", ".join(left),
                model.active_adapters[0],
            )
        return None
    if (
        adapter_added
        or args.precompute_ref_log_probs
        or not isinstance(model, PreTrainedModel)
        or not is_whole_in_memory(model)
    ):
        return None
    if not are_reference_free(args.loss_type):
        return copied_model(model)
    divided = any(parse_flag_from_env(name) for name in DIVIDING) or args.fsdp or args.deepspeed
    return None if divided else stand_in(model)


def refuse_precomputed_elsewhere(peft_config: Any) -> None:
    """Refuse reference values that TRL would precompute with a new adapter off, where that is not the start.

    Raises:
        RequestError: the adapter's initialization changes the base or what the model computes.
    """
    start = getattr(peft_config, "init_lora_weights", True)
    if peft_config is None or (start in STARTS_AS_BASE and not peft_config.is_prompt_learning):
        return
    kind = peft_config.peft_type.value if start in STARTS_AS_BASE else f"init_lora_weights={start!r}"
    raise RequestError(
        f"precompute_ref_log_probs takes the model without its adapter for the reference, and with {kind} that is not "
        "the model that training starts from; leave it out: reference values are kept for later epochs and runs as "
        "they are computed"
    )


def settle_adapter(model: nn.Module, args: DPOConfig, *, adapter_is_new: bool) -> StartValues | None:
    """Make the reference of a model with an adapter exact after TRL's constructor; the model itself stays as it is.

    Args:
        model: the trainer's model; it has the adapter `FROZEN` where TRL made one.
        args: the trainer's configuration.
        adapter_is_new: whether the trainer put the adapter on the model.

    Returns:
        Parameters outside the adapter that are trained, or None.

    Raises:
        RequestError: the reference would need a second adapter, and PEFT allows none.
    """
    if not isinstance(model, PeftModel) or are_reference_free(args.loss_type):
        return None
    unchanged = starts_as_base(model) if adapter_is_new else has_empty_adapter(model)
    if adapter_is_new and not unchanged:
        logger.warning(
            "The new adapter changes what the model computes before training. The reference is the model with it, so "
            "the first loss is that of equal models; TRL's is the model with the adapter off."
        )
    if unchanged:
        drop_frozen(model)
    elif adapter_is_new or FROZEN not in model.peft_config or model.active_adapters != ["default"]:
        drop_frozen(model)
        keep_adapter(model)
    else:
        copy_adapter(model, "default", FROZEN)
    if any(config.is_adaption_prompt for config in model.peft_config.values()):
        return None  # PEFT takes these layers out of the model to switch them off
    adapters = [FROZEN] if FROZEN in model.peft_config else []
    ran = {id(tensor) for tensor in base_tensors(model.get_base_model(), adapters).values()}
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad and id(p) in ran}
    return StartValues(trained) if trained else None


def refuse_other_start(policy: Tensor, reference: Tensor, tokens: Tensor, dtype: torch.dtype) -> None:
    """Refuse to train where policy and reference differ by more than rounding before the first optimizer step.

    Args:
        policy, reference: log-probabilities of completions, [sequences].
        tokens: how many tokens each of them has, [sequences].
        dtype: of the products in the model.

    Raises:
        RequestError: they differ, and both are finite.
    """
    lengths = tokens.double().clamp(min=1)
    difference = float(((policy.double() - reference.double()) / lengths).abs().mean())
    size = float((policy.double() / lengths).abs().mean())
    allowed = max(LEAST_DIFFERENCE, STEPS_OF_ROUNDING * torch.finfo(dtype).eps * max(1.0, size))
    if math.isfinite(difference) and difference > allowed:
        raise RequestError(
            f"before the first step policy and reference differ by {difference:.2g} nats a token, and rounding "
            f"explains {allowed:.2g}: the reference is not the model that training starts from. Either weights were "
            "changed after the trainer was constructed, or the adapter's method changes its base; construct the "
            "trainer with the model as it is to start, or give a ref_model"
        )
