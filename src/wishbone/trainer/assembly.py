"""From a trainer's arguments to its step: the policy, the reference it is compared with, and the objective."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import cast

import psutil
import torch
from peft import PeftModel
from torch import nn
from transformers import TrainerCallback

from wishbone.data.batch import TokenizedPair
from wishbone.engine.compile_ahead import compile_ahead
from wishbone.engine.execution import Execution, Treatment
from wishbone.engine.step import PreferenceStep
from wishbone.fused.coverage import Coverage
from wishbone.fused.layers import FusedLayers
from wishbone.model.eight_bit_linear import refuse_readers_of_codes
from wishbone.model.frozen_copy import FROZEN, StartValues
from wishbone.model.host_embedding import compute_device
from wishbone.model.quantization import forbid_repacking
from wishbone.phases import phase
from wishbone.planning.budget import estimated_room, token_budget
from wishbone.policy.activations import allow_recompute, chosen_activations
from wishbone.policy.capability import choose_form
from wishbone.policy.fused_parts import coverage_of
from wishbone.policy.policy import Policy
from wishbone.preference.load_balancing import LoadBalancing
from wishbone.preference.objective import Objective
from wishbone.preference.scores import LossParameters
from wishbone.reference.cache import STORE_VARIABLE, CachedReference, cached_reference
from wishbone.reference.identity import Autocast
from wishbone.reference.lockstep import rounds_inputs, why_apart
from wishbone.reference.reference import (
    AdapterDisabled,
    NoReference,
    ReferencePolicy,
    SeparateModel,
    Stored,
)
from wishbone.reference.synchronized import SynchronizedAdapter
from wishbone.trainer.arguments import DPOConfig
from wishbone.trainer.reference_store_callback import ReferenceStoreCallback
from wishbone.trainer.sharding import gathered_bytes, is_sharded
from wishbone.trainer.synchronization import Synchronization

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assembly:
    """What `assemble_step` returns.

    Attributes:
        step: computes losses and gradients.
        execution: how rows are computed until profiling has chosen.
        form_reason: why the policy does not run in its fast form, in one line, or None.
        callbacks: what the trainer must call for the step's reference to stay right.
        coverage: which parts of the policy run fused.
    """

    step: PreferenceStep
    execution: Execution
    form_reason: str | None
    callbacks: list[TrainerCallback]
    coverage: Coverage


def assemble_step(
    model: nn.Module,
    ref_model: nn.Module | None,
    args: DPOConfig,
    autocast: Autocast = nullcontext,
    start_values: StartValues | None = None,
    load_balancing: LoadBalancing | None = None,
    images: Sequence[TokenizedPair] = (),
) -> Assembly:
    """Build the step that a trainer's arguments ask for.

    Args:
        model: the model that is trained, on its device.
        ref_model: a second model as the reference, or None.
        args: the trainer's arguments.
        autocast: context of forward passes, for mixed precision.
        start_values: trained parameters of an adapter's base, with the values that they have in the reference, or None.
        load_balancing: the auxiliary loss of the model's experts, or None.
        images: some pairs of the run that have images; empty if it has none.

    Raises:
        RequestError: model and arguments do not go together.
    """
    objective = objective_of(args, load_balancing)
    own_reference = isinstance(model, PeftModel) and ref_model is None and not args.precompute_ref_log_probs
    policy, form_reason = _policy(
        model, args, autocast, images, lambda tried: _compile_ahead(tried, objective, own_reference=own_reference)
    )
    coverage = coverage_of(policy, form_reason)
    if policy.form == "shared_prefix" and policy.device.type == "cuda":
        for line in policy.recurrence.slower(policy.device):
            logger.warning("%s", line)
    if policy.device.type == "cuda":
        for line in coverage.warnings(said=form_reason):
            logger.warning("%s: %s", type(policy.causal_lm).__name__, line)
    execution = _execution(policy, args)
    reference, callbacks = _reference(policy, ref_model, args, autocast, objective, start_values, images)
    return Assembly(PreferenceStep(policy, reference, objective), execution, form_reason, callbacks, coverage)


def objective_of(args: DPOConfig, load_balancing: LoadBalancing | None) -> Objective:
    """Return what a trainer's arguments ask to minimize, with the auxiliary loss of the model's experts, if any."""
    return Objective(
        losses=tuple(args.loss_type),
        loss_weights=tuple(args.loss_weights or [1.0] * len(args.loss_type)),
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
        load_balancing=load_balancing,
    )


def _policy(
    model: nn.Module,
    args: DPOConfig,
    autocast: Autocast,
    images: Sequence[TokenizedPair],
    ahead: Callable[[Policy], None] = lambda _: None,
) -> tuple[Policy, str | None]:
    """Return the model as the step runs it, and why that is not its fast form, or None.

    `ahead` gets the fast form before it is known whether the model can run in it.
    """
    forbid_repacking(model)
    refuse_readers_of_codes(model, getattr(model, "peft_config", {}))
    row_multiple = 128 if compute_device(model).type == "cuda" else 1
    fused = _fused_layers(model, args)
    if not images:
        ahead(Policy(model, row_multiple=row_multiple, autocast=autocast, fused=fused))
    wrapped = hasattr(model, "_original_forward")  # accelerate prepared it, as TRL has it prepare the reference
    with phase("trial", note="whether pairs can share rows"):
        capability = choose_form(
            model,
            max_length=args.max_length,
            row_multiple=row_multiple,
            autocast=autocast if wrapped else nullcontext,
            images=images,
        )
    if capability.reason:
        logger.warning("%s is trained on plain sequences: %s.", type(model).__name__, capability.reason)
    policy = Policy(
        model,
        form=capability.form,
        row_multiple=row_multiple,
        autocast=autocast,
        fused=fused,
        layout_as_mask=capability.layout_as_mask,
        image_attention=capability.image_attention,
    )
    return policy, capability.reason


def _compile_ahead(policy: Policy, objective: Objective, *, own_reference: bool) -> None:
    """Start to compile the kernels of a step, whose reference may be the policy's own weights."""
    reference: ReferencePolicy = NoReference()
    if own_reference and not objective.reference_free:
        reference = own = AdapterDisabled(policy)
        own.in_lockstep = True
    compile_ahead(PreferenceStep(policy, reference, objective))


def _fused_layers(model: nn.Module, args: DPOConfig) -> FusedLayers | None:
    """Return the model's fused layers on a GPU, and anywhere in bfloat16; elsewhere None.

    A CPU gains little time by them. But PEFT adds an adapter's output to an output that is already rounded, and in
    bfloat16 that loses most of it (`ops/lora_linear/precision.py`).
    """
    on_gpu = compute_device(model).type == "cuda"
    if not on_gpu and not args.bf16 and model.dtype != torch.bfloat16:
        return None
    fused = FusedLayers(model)
    if on_gpu and not is_sharded(model):
        fused.linears.join_weights()
    return fused


def _execution(policy: Policy, args: DPOConfig) -> Execution:
    """Return what the arguments say, or else what is noted on the model; without either, layers stay as they are."""
    causal_lm, device = policy.causal_lm, policy.device.type
    budget = token_budget(args.token_budget, device)
    given = cast(Treatment | None, None if args.activations == "auto" else args.activations)
    asked = given or chosen_activations(policy.model)
    own = dict(args.gradient_checkpointing_kwargs or {})
    own = {name: value for name, value in own.items() if (name, value) != ("use_reentrant", False)}
    if asked is None and (own or not args.gradient_checkpointing):
        return Execution(budget)
    allow_recompute(causal_lm)
    if asked is not None:
        return Execution.treating(budget, asked)
    config = causal_lm.config.get_text_config()
    free = torch.cuda.mem_get_info(policy.device)[0] if device == "cuda" else psutil.virtual_memory().available
    if policy.sharded:
        free = max(0, free - gathered_bytes(policy.model))
    room = estimated_room(
        free,
        device,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        inner=getattr(config, "intermediate_size", None),
        element_bytes=2 if args.bf16 or args.fp16 else causal_lm.dtype.itemsize,
    )
    return Execution(budget, room, offload="as needed")


def _reference(
    policy: Policy,
    ref_model: nn.Module | None,
    args: DPOConfig,
    autocast: Autocast,
    objective: Objective,
    start_values: StartValues | None,
    images: Sequence[TokenizedPair],
) -> tuple[ReferencePolicy, list[TrainerCallback]]:
    """Return the reference and the callbacks that it needs."""
    if objective.reference_free:
        return NoReference(), []
    if args.precompute_ref_log_probs:
        return Stored(), []
    callbacks: list[TrainerCallback] = []
    reference: ReferencePolicy
    runs = policy
    own: AdapterDisabled | None = None
    if ref_model is not None:
        runs, _ = _policy(ref_model, args, autocast, images)
        reference = SeparateModel(runs, args.ld_alpha)
    elif args.sync_ref_model:
        reference = own = moving = SynchronizedAdapter(policy, args.ld_alpha, start_values)
        callbacks.append(Synchronization(moving))
    else:
        assert isinstance(policy.model, PeftModel)
        frozen_copy = FROZEN if FROZEN in policy.model.peft_config else None
        reference = own = AdapterDisabled(policy, frozen_copy, args.ld_alpha, start_values)
    asked, unasked = args.reference_store, args.reference_store == "auto" and STORE_VARIABLE not in os.environ
    rounds = own is not None and _run_in_lockstep(policy, own, images) and rounds_inputs(policy)
    if rounds and unasked:
        asked = "off"
        logger.info(
            "Reference log-probabilities are not stored: in 8 bits those of another pass are rounded otherwise than "
            "the policy's, which puts noise into every reward. To store them anyway, name a file as reference_store."
        )
    in_words = os.environ.get(STORE_VARIABLE, asked) if asked == "auto" else asked
    if policy.sharded and in_words not in ("auto", "off"):
        logger.warning(
            "The reference store is off: a sharded model runs equally often in all processes, stored or not."
        )
    if policy.sharded:
        asked = "off"
    reference = cached_reference(
        reference,
        runs,
        asked=asked,
        trained=policy.model,
        adapters=lambda: own.adapters if own else [],
        moves=args.sync_ref_model,
        ld_alpha=args.ld_alpha,
        autocast=autocast,
    )
    if isinstance(reference, CachedReference):
        callbacks.append(ReferenceStoreCallback(reference))
        if rounds:
            logger.warning(
                "Reference log-probabilities are stored, as %s asks. In FP8 a stored value was rounded otherwise than "
                "the policy's, so rewards have the noise of two passes wherever one is looked up. Leave that out, and "
                "one pass computes both each time.",
                STORE_VARIABLE if args.reference_store == "auto" else f"reference_store={args.reference_store!r}",
            )
    return reference, callbacks


def _run_in_lockstep(policy: Policy, reference: AdapterDisabled, images: Sequence[TokenizedPair]) -> bool:
    """Let one pass compute policy and reference where it can; return whether it does."""
    reason = why_apart(policy, reference, images)
    reference.in_lockstep = reason is None
    if reason is not None and policy.fused is not None:
        logger.info("Policy and reference run one after the other, because %s.", reason)
    return reference.in_lockstep
