"""From a run's configuration to the trainer's arguments.

No tracker is among them: the run adds them by itself (`run/trackers.py`), so that one that fails stops nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from wishbone.config.run_directory import CHECKPOINTS
from wishbone.config.schema import RunConfig
from wishbone.preference.losses import are_reference_free
from wishbone.run.trackers import PROJECT
from wishbone.trainer.arguments import ALL_STEPS, DPOConfig


def training_arguments(
    config: RunConfig,
    run_dir: Path,
    dtype: torch.dtype,
    tracked_as: str,
    sharding: Mapping[str, Any],
    *,
    images: bool = False,
) -> DPOConfig:
    """Return the trainer's arguments for a configuration.

    Args:
        config: of the run.
        run_dir: its directory.
        dtype: of the model.
        tracked_as: name of the run in its trackers.
        sharding: arguments that divide the model; empty where it is whole.
        images: whether pairs have images, whose reference values TRL does not compute before training.
    """
    training, preference, data = config.training, config.preference, config.data
    cuda = torch.cuda.is_available()
    evaluates = data.eval is not None or data.eval_split is not None or data.eval_fraction > 0
    every = {"eval": training.eval_steps, "save": training.save_steps}
    return DPOConfig(
        output_dir=str(run_dir / CHECKPOINTS),
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=8,
        gradient_accumulation_steps=training.gradient_accumulation,
        learning_rate=training.learning_rate,
        num_train_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        warmup_steps=0 if training.scheduler == "constant" else min(training.warmup_ratio, ALL_STEPS),
        lr_scheduler_type=training.scheduler,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim=training.optimizer,
        seed=training.seed,
        logging_steps=training.logging_steps,
        logging_nan_inf_filter=False,
        eval_strategy=("no" if not evaluates else "steps" if every["eval"] else "epoch"),
        eval_steps=every["eval"],
        save_strategy="steps" if every["save"] else "epoch",
        save_steps=every["save"] or 500,
        save_minutes=None if every["save"] else 3.0,
        save_total_limit=2,
        report_to="none",
        project=PROJECT,
        run_name=tracked_as,
        disable_tqdm=True,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        gradient_checkpointing=training.activations != "keep",
        activations="auto" if training.activations == "keep" else training.activations,
        max_length=data.max_length,
        lost_text=data.lost_text,
        truncation_mode=data.truncation,
        beta=preference.beta,
        loss_type=list(preference.loss),
        loss_weights=preference.loss_weights,
        label_smoothing=preference.label_smoothing,
        f_divergence_type=preference.f_divergence,
        f_alpha_divergence_coef=preference.f_alpha,
        ld_alpha=preference.ld_alpha,
        use_weighting=preference.use_weighting,
        discopop_tau=preference.discopop_tau,
        simpo_gamma=preference.simpo_gamma,
        dpop_lambda=preference.dpop_lambda,
        rdpo_alpha=preference.rdpo_alpha,
        cpo_alpha=preference.cpo_alpha,
        orpo_lambda=preference.orpo_lambda,
        token_budget=training.token_budget,
        shared_steps=True,
        **sharding,
        guard=training.guard,
        guard_steps=training.guard_steps,
        precompute_ref_log_probs=precomputes_reference(config) and not images,
        reference_store=training.reference_store,
        disable_dropout=config.adapter.dropout == 0,
    )


def precomputes_reference(config: RunConfig) -> bool:
    """Return whether reference values are computed before training: the whole model is trained and is the reference."""
    moves = config.adapter.method == "full" and config.model.reference is None
    return moves and not are_reference_free(config.preference.loss)
