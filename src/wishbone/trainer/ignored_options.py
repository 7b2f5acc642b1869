"""Options that have no effect in a run: a warning names each of them, and those that would do harm are taken out."""

from __future__ import annotations

import logging
from dataclasses import fields

from wishbone.config.cautions import READ_BY
from wishbone.preference.losses import are_reference_free
from wishbone.trainer.arguments import DPOConfig

logger = logging.getLogger(__name__)


def name_options_without_effect(config: DPOConfig) -> DPOConfig:
    """Return `config` without what has no effect on this machine, and warn about each option that has none."""
    if config.label_smoothing_factor:
        logger.warning(
            "label_smoothing_factor=%g changes nothing: preference losses do not read it, not in TRL either. Set "
            "label_smoothing instead.",
            config.label_smoothing_factor,
        )
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
    if config.sync_ref_model and are_reference_free(config.loss_type):
        logger.warning(
            "sync_ref_model changes nothing: %s reads no reference, so none is kept.", ", ".join(config.loss_type)
        )
        config = config.changed({"sync_ref_model": False})
    return config
