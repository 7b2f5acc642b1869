"""Options that have no effect in a run: a warning names each of them."""

from __future__ import annotations

import logging

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
    return config
