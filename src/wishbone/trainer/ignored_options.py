"""Options that have no effect in a run: a warning names each of them, and those that would do harm are taken out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from wishbone.config.cautions import READ_BY
from wishbone.preference.losses import are_reference_free
from wishbone.trainer.arguments import ALL_STEPS, DPOConfig

logger = logging.getLogger(__name__)


def name_options_without_effect(config: DPOConfig) -> DPOConfig:
    """Return `config` without what has no effect on this machine, and warn about each option that has none."""
    if config.label_smoothing_factor:
        logger.warning(
            "label_smoothing_factor=%g changes nothing: preference losses do not read it, not in TRL either. Set "
            "label_smoothing instead.",
            config.label_smoothing_factor,
        )
    if config.max_steps == 0 or (config.max_steps < 0 and config.num_train_epochs <= 0):
        logger.warning("The run takes no step, so nothing is trained: set max_steps or num_train_epochs above 0.")
    if config.activation_offloading and config.device.type == "cpu":
        logger.warning("activation_offloading changes nothing on a CPU: activations are in host memory already.")
        config = config.changed({"activation_offloading": False})
    defaults = {option.name: option.default for option in fields(config)}
    for name, losses in READ_BY.items():
        if losses.isdisjoint(config.loss_type) and getattr(config, name) != defaults[name]:
            logger.warning(
                "%s=%g changes nothing: only %s reads it, and loss_type is %s.",
                name,
                getattr(config, name),
                ", ".join(sorted(losses)),
                ", ".join(config.loss_type),
            )
    for name, reader in _unread(config, defaults).items():
        logger.warning("%s=%s changes nothing: %s.", name, getattr(config, name), reader)
    if config.sync_ref_model and are_reference_free(config.loss_type):
        logger.warning(
            "sync_ref_model changes nothing: %s reads no reference, so none is kept.", ", ".join(config.loss_type)
        )
        config = config.changed({"sync_ref_model": False})
    return config


def _unread(config: DPOConfig, defaults: Mapping[str, Any]) -> dict[str, str]:
    """Options that were set and that another one keeps from being read, each with the reason."""
    settled = {
        "f_alpha_divergence_coef": (
            config.f_divergence_type != "alpha_divergence",
            f"only alpha_divergence reads it, and f_divergence_type is {config.f_divergence_type}",
        ),
        "ref_model_mixup_alpha": (not config.sync_ref_model, "sync_ref_model is not set"),
        "ref_model_sync_steps": (not config.sync_ref_model, "sync_ref_model is not set"),
        "precompute_ref_batch_size": (not config.precompute_ref_log_probs, "precompute_ref_log_probs is not set"),
        "guard_steps": (config.guard == "off", "guard is off"),
        "warmup_ratio": (
            config.warmup_steps not in (config.warmup_ratio, ALL_STEPS),
            f"warmup_steps={config.warmup_steps:g} is set beside it",
        ),
        "warmup_steps": (
            config.lr_scheduler_type == "constant",
            "the constant schedule has no warm-up; set lr_scheduler_type to constant_with_warmup",
        ),
    }
    return {
        name: reason for name, (unread, reason) in settled.items() if unread and getattr(config, name) != defaults[name]
    }
