"""Before the first optimizer step, policy and reference give some pairs the same log-probabilities, to rounding.

Whatever an adapter's method does to its base, and whatever was done to the model since the trainer was constructed, is
seen here. A run whose user gave a `ref_model` is not checked: there they differ on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from trl.trainer.dpo_trainer import DPOTrainer as TRLDPOTrainer

from wishbone.data.batch import TokenizedPair
from wishbone.engine.execution import Execution
from wishbone.engine.step import PreferenceStep
from wishbone.policy.policy import Policy
from wishbone.preference.sequence_scores import SequenceScores, sequence_scores
from wishbone.reference.cache import CachedReference
from wishbone.reference.reference import ReferencePolicy
from wishbone.trainer.start import refuse_other_start

PAIRS = 2
"""Pairs that are compared, the shortest of the first step."""


def uncached(step: PreferenceStep) -> ReferencePolicy:
    """Return the reference that computes values, without its cache."""
    return step.reference.inner if isinstance(step.reference, CachedReference) else step.reference


def check_start(step: PreferenceStep, pairs: Sequence[TokenizedPair], execution: Execution) -> None:
    """Compare policy and reference on pairs of the first step; nothing of the run changes.

    Raises:
        RequestError: they differ by more than rounding.
    """
    if step.objective.reference_free:
        return
    execution = replace(execution, graphs=None)  # it has passes that training does not have
    shortest = sorted(pairs, key=lambda pair: pair.row_tokens)[:PAIRS]
    batch = step.policy.collate(shortest, execution)
    with torch.no_grad():
        reference = uncached(step).logps(batch, execution)
        with step.policy.running(execution):
            scores: SequenceScores = sequence_scores(
                step.policy.token_scores(batch, execution, statistics=False), batch, step.objective.ld_alpha
            )
    refuse_other_start(scores.logps, reference, scores.scored_lengths, products_dtype(step.policy))


def products_dtype(policy: Policy) -> torch.dtype:
    """Return the dtype of matrix products of a policy: autocast's where it is on, else the weights'."""
    with policy.autocast():
        kind = policy.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else policy.causal_lm.dtype


def cannot_be_checked(trainer: TRLDPOTrainer) -> bool:
    """Return whether a run on TRL's path cannot take an additional pass for this check before its first step.

    A model that is sharded takes part in each pass with all processes in training mode, and activated LoRA allows one
    pass before each backward pass.
    """
    sharded = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or trainer.accelerator.parallelism_config
    configs = trainer.model.peft_config.values() if isinstance(trainer.model, PeftModel) else ()
    return bool(sharded) or any(getattr(config, "alora_invocation_tokens", None) for config in configs)


def check_start_on_trl_path(
    trainer: TRLDPOTrainer, compute_loss: Callable[..., Tensor], inputs: dict[str, Any]
) -> None:
    """Compare policy and reference on the first batch of a run on TRL's own path, without dropout.

    TRL logs the rewards beta (log pi - log pi_ref), from which their difference is read.

    Args:
        trainer: on TRL's path.
        compute_loss: TRL's method.
        inputs: the first batch.

    Raises:
        RequestError: they differ by more than rounding.
    """
    model: nn.Module = trainer.model
    metrics, was_training = trainer._metrics["eval"], model.training
    before = {name: list(values) for name, values in metrics.items()}
    model.eval()
    try:
        with torch.no_grad():
            batch = trainer._prepare_inputs(inputs)
            compute_loss(model, batch)
        sides = [(metrics[f"rewards/{side}"][-1], metrics[f"logps/{side}"][-1]) for side in ("chosen", "rejected")]
    finally:
        model.train(was_training)
        metrics.clear()
        metrics.update(before)
    if not trainer.beta:
        return
    policy = torch.tensor([logp for _, logp in sides], dtype=torch.float64)
    reference = policy - torch.tensor([reward for reward, _ in sides], dtype=torch.float64) / trainer.beta
    tokens = batch["completion_mask"].sum(1).double()
    lengths = torch.stack([part.mean() for part in tokens.chunk(2)]).cpu()
    with trainer.accelerator.autocast():
        kind = trainer.args.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype
    assert isinstance(dtype, torch.dtype)
    refuse_other_start(policy, reference, lengths, dtype)
