"""Options that can change nothing in a run: each is named once, none is passed over in silence."""

from __future__ import annotations

import logging

from wishbone.trainer.arguments import DPOConfig

logger = logging.getLogger(__name__)


def name_options_without_effect(config: DPOConfig) -> DPOConfig:
    """Return `config` without what has no meaning on this machine, and warn of every option that changes nothing."""
    if config.label_smoothing_factor:
        logger.warning(
            "label_smoothing_factor=%g changes nothing: preference losses do not read it, in TRL neither. Theirs is "
            "label_smoothing.",
            config.label_smoothing_factor,
        )
    if config.activation_offloading and config.device.type == "cpu":
        logger.warning("activation_offloading changes nothing on a CPU: activations are in host memory already.")
        config = config.changed({"activation_offloading": False})
    return config
