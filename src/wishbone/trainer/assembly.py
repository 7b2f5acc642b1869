"""From a trainer's arguments to its step: the policy, the reference it is measured against, and the objective."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import psutil
import torch
from peft import PeftModel
from torch import nn

from wishbone.engine.step import PreferenceStep
from wishbone.fused.layers import FusedLayers
from wishbone.model.fp8_linear import refuse_readers_of_codes
from wishbone.model.host_embedding import compute_device
from wishbone.model.quantization import forbid_repacking
from wishbone.planning.budget import activation_bytes, activation_room, token_budget
from wishbone.policy.activations import EVERYTHING, NOTHING, Activations, Room, chosen_activations
from wishbone.policy.capability import choose_form
from wishbone.policy.policy import Policy
from wishbone.preference.objective import Objective
from wishbone.preference.scores import LossParameters
from wishbone.reference.reference import AdapterDisabled, NoReference, ReferencePolicy, SeparateModel, Stored
from wishbone.reference.synchronized import SynchronizedAdapter
from wishbone.trainer.reference_use import keep_reference
from wishbone.trainer.synchronization import Synchronization

if TYPE_CHECKING:
    from wishbone.trainer.trainer import DPOTrainer

logger = logging.getLogger(__name__)


def assemble_step(trainer: DPOTrainer) -> tuple[PreferenceStep, str | None]:
    """Return the step that a trainer's arguments ask for, and why the policy is not run in its fast form, or None.

    Args:
        trainer: after TRL's construction of it; callbacks that the step needs are added to it.
    """
    args = trainer.args
    objective = Objective(
        losses=tuple(trainer.loss_types),
        loss_weights=tuple(trainer.loss_weights),
        parameters=LossParameters(
            beta=args.beta,
            label_smoothing=args.label_smoothing,
            f_divergence=args.f_divergence_type,
            f_alpha=args.f_alpha_divergence_coef,
            discopop_tau=args.discopop_tau,
            simpo_gamma=args.simpo_gamma,
            dpop_lambda=args.dpop_lambda,
            rdpo_alpha=args.rdpo_alpha,
            cpo_alpha=args.cpo_alpha,
            orpo_lambda=args.orpo_lambda,
        ),
        ld_alpha=args.ld_alpha,
        use_weighting=args.use_weighting,
    )
    if (args.fp16_full_eval or args.bf16_full_eval) and not trainer.is_model_parallel:
        trainer._move_model_to_device(trainer.model, args.device)  # transformers waits for training, the trial does not
    policy, reason = _policy(trainer, trainer.model)
    budget = token_budget(args.token_budget, policy.device.type)
    return PreferenceStep(policy, _reference(trainer, policy, objective), objective, budget), reason


def _policy(trainer: DPOTrainer, model: nn.Module) -> tuple[Policy, str | None]:
    forbid_repacking(model)
    refuse_readers_of_codes(model, getattr(model, "peft_config", {}))
    row_multiple = 128 if compute_device(model).type == "cuda" else 1
    wrapped = hasattr(model, "_original_forward")  # accelerate prepared it, as TRL has it prepare the reference
    capability = choose_form(
        model,
        max_length=trainer.args.max_length,
        row_multiple=row_multiple,
        autocast=trainer.accelerator.autocast if wrapped else nullcontext,
    )
    if capability.reason:
        logger.warning("%s is trained on plain sequences: %s.", type(model).__name__, capability.reason)
    policy = Policy(
        model,
        form=capability.form,
        row_multiple=row_multiple,
        autocast=trainer.accelerator.autocast,
        activations=_activations(trainer, model) if model is trainer.model else None,
        fused=_fused_layers(trainer, model),
    )
    if policy.activations is not None and policy.activations.offload == "always":
        policy.save_memory()
    return policy, capability.reason


def _fused_layers(trainer: DPOTrainer, model: nn.Module) -> FusedLayers | None:
    """The layers of the model as a GPU runs them best, and anywhere in bfloat16.

    A CPU gains little time by it. But PEFT's layers add what an adapter says to an output that is rounded already, and
    in bfloat16 most of it is lost there (`ops/lora_linear/group.py`).
    """
    on_gpu = compute_device(model).type == "cuda"
    if not on_gpu and not trainer.args.bf16 and model.dtype != torch.bfloat16:
        return None
    fused = FusedLayers(model)
    if on_gpu:
        fused.linears.lay_in_one_buffer()
    return fused


def _activations(trainer: DPOTrainer, model: nn.Module) -> Activations:
    """What the arguments say, or else what was noted on the model; without either the layers are left alone."""
    causal_lm: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    asked = trainer.args.activations if trainer.args.activations != "auto" else chosen_activations(model)
    own = dict(trainer.args.gradient_checkpointing_kwargs or {})
    own = {name: value for name, value in own.items() if (name, value) != ("use_reentrant", False)}
    if asked is None and (own or not trainer.args.gradient_checkpointing):
        return Activations(causal_lm, None)
    if asked is not None:
        room = EVERYTHING if asked == "keep" else NOTHING
        return Activations(causal_lm, room, offload="always" if asked == "offload" else "never")
    numbers = 2 if trainer.args.bf16 or trainer.args.fp16 else causal_lm.dtype.itemsize
    device = compute_device(model).type
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
    base, layer = activation_bytes(causal_lm.config.get_text_config(), numbers)
    return Activations(causal_lm, Room(activation_room(free, device), base, layer), offload="as needed")


def _reference(trainer: DPOTrainer, policy: Policy, objective: Objective) -> ReferencePolicy:
    if objective.reference_free:
        return NoReference()
    if trainer.precompute_ref_logps:
        return Stored()
    if trainer.ref_model is not None:
        frozen = _policy(trainer, trainer.ref_model)[0]
        return keep_reference(trainer, SeparateModel(frozen, objective.ld_alpha), frozen)
    assert isinstance(policy.model, PeftModel)
    if trainer.args.sync_ref_model:
        moving = SynchronizedAdapter(policy, objective.ld_alpha)
        trainer.add_callback(Synchronization(moving))
        return keep_reference(trainer, moving, policy)
    adapter = "ref" if "ref" in policy.model.peft_config else None
    disabled = AdapterDisabled(policy, adapter, objective.ld_alpha)
    return keep_reference(trainer, disabled, policy, disabled.adapters)
