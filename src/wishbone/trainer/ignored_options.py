"""Options that have no effect in a run: one warning for each, and those that would cause errors are removed."""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from transformers import TrainingArguments

from wishbone.config.cautions import READ_BY
from wishbone.preference.losses import REFERENCE_FREE, are_reference_free
from wishbone.trainer.arguments import ALL_STEPS, DPOConfig

logger = logging.getLogger(__name__)

WITHOUT_ARGUMENTS = ("adamw_torch", "adamw_bnb", "adamw_8bit", "paged_adamw", "lion", "paged_lion", "adafactor")
"""Optimizers, by how their names begin, to which transformers gives nothing of `optim_args`."""
WITHOUT_BETA = frozenset({"sft", "orpo"})
"""Losses that do not read beta."""


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
    for sentence in _without_learning(config) + _never(config):
        logger.warning("%s", sentence)
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


def not_reached(config: DPOConfig, steps: int) -> list[str]:
    """Return a sentence for each thing that is to happen after more steps than a run takes.

    Args:
        config: of the run.
        steps: that it takes in all.
    """
    found = []
    every = (config.eval_steps or 0) * (steps if (config.eval_steps or 0) < 1 else 1)
    measures = config.eval_strategy == "steps" and not config.eval_on_start
    if measures and max(every, config.eval_delay) > steps:
        found.append(f"Nothing is evaluated: that begins after step {max(every, config.eval_delay):g} of {steps}.")
    if config.lr_scheduler_type != "constant" and (warm := config.get_warmup_steps(steps)) > steps:
        found.append(
            f"The learning rate rises over {warm} steps, and the run takes {steps}: it does not reach its top."
        )
    return found


def _without_learning(config: DPOConfig) -> list[str]:
    """A sentence for each value that keeps a loss from being learned, or turns it round."""
    found = []
    if not config.learning_rate:
        found.append("learning_rate=0: nothing is trained.")
    if not config.beta and (compared := sorted(set(config.loss_type) - WITHOUT_BETA)):
        found.append(f"beta=0 leaves nothing of the comparison in {', '.join(compared)}: no preference is learned.")
    weights = config.loss_weights or [1.0] * len(config.loss_type)
    if unlearned := [name for name, weight in zip(config.loss_type, weights, strict=True) if not weight]:
        found.append(f"The weight of {', '.join(unlearned)} in loss_weights is 0, so it is not learned.")
    for name, times in Counter(config.loss_type).items():
        if times > 1:
            total = sum(weight for one, weight in zip(config.loss_type, weights, strict=True) if one == name)
            found.append(f"loss_type names {name} {times} times: it counts {total:g} times, as in TRL.")
    if config.sync_ref_model and not config.ref_model_mixup_alpha:
        found.append("sync_ref_model with ref_model_mixup_alpha=0 leaves the reference as it was.")
    if reversed_ := [name for name, weight in zip(config.loss_type, weights, strict=True) if weight < 0]:
        found.append(f"The weight of {', '.join(reversed_)} in loss_weights is below 0, so that loss is made larger.")
    return found


def _never(config: DPOConfig) -> list[str]:
    """A sentence for each number that transformers takes for "never" or for "no limit"."""
    steps = {"save": "no checkpoint is written", "eval": "nothing is evaluated", "logging": "only the end is logged"}
    found = [
        f"{kind}_steps={getattr(config, f'{kind}_steps'):g} is never: {so}."
        for kind, so in steps.items()
        if getattr(config, f"{kind}_strategy") == "steps" and getattr(config, f"{kind}_steps") <= 0
    ]
    if config.fsdp:
        reader = inspect.getsource(TrainingArguments)
        if unread := [key for key in config.fsdp_config if f'"{key}"' not in reader]:
            found.append(f"fsdp_config has {', '.join(unread)}, which transformers does not read: it changes nothing.")
    if config.save_total_limit is not None and config.save_total_limit < 1:
        found.append(f"save_total_limit={config.save_total_limit} is no limit: all checkpoints are kept.")
    if config.load_best_model_at_end and config.eval_strategy == "no":
        found.append("load_best_model_at_end changes nothing: eval_strategy is 'no', so no weights are the best.")
    return found


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
        "fsdp_config": (not config.fsdp, "fsdp is not set"),
        "guard_steps": (config.guard == "off", "guard is off"),
        "warmup_ratio": (
            config.warmup_steps not in (config.warmup_ratio, ALL_STEPS),
            f"warmup_steps={config.warmup_steps:g} is set beside it",
        ),
        "optim_args": (
            config.optim.startswith(WITHOUT_ARGUMENTS) and config.optim not in ("adamw_torch_4bit", "adamw_torch_8bit"),
            f"optim {config.optim.value} does not read it",
        ),
        "optim_target_modules": (
            not config.optim.startswith(("galore", "apollo")),
            f"only GaLore and APOLLO read it, and optim is {config.optim.value}",
        ),
        "ld_alpha": (
            set(config.loss_type) <= REFERENCE_FREE,
            f"{', '.join(config.loss_type)} does not weight the tokens of longer completions",
        ),
        "warmup_steps": (
            config.lr_scheduler_type == "constant",
            "the constant schedule has no warm-up; set lr_scheduler_type to constant_with_warmup",
        ),
    }
    return {
        name: reason for name, (unread, reason) in settled.items() if unread and getattr(config, name) != defaults[name]
    }
