"""A script that no launcher started and that sees several GPUs trains on the first of them, and says so once.

transformers would copy a model to all of them for each batch (`nn.DataParallel`), which TRL refuses; a model that is
given by its name TRL spreads over all of them, whether or not it fits one, and they compute one after the other. What
one GPU computes is right, and so is what the processes of a launcher compute, one for each GPU.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from wishbone.trainer.arguments import DPOConfig

ONE_OF = (
    "No launcher started this script, so it trains on one of the %d GPUs that it sees. All of them: torchrun "
    "--nproc-per-node %d %s (in a notebook accelerate.notebook_launcher, with all imports inside its function). There "
    "each process adds a batch of its own to a step, or shares the pairs of one with shared_steps=True."
)
SPLIT = (
    "the model's layers lie on several devices (device_map) and compute one after the other; torchrun with fsdp=True "
    "divides them in Wishbone's step"
)
"""Why such a model takes TRL's own path."""

logger = logging.getLogger(__name__)


def is_split(model: Any) -> bool:
    """Whether `device_map` put layers of a model on several devices; host memory and disks count as none."""
    places = getattr(model, "hf_device_map", None) or {}
    return len({str(place) for place in places.values()} - {"cpu", "disk"}) > 1


def placement(config: DPOConfig) -> dict[str, Any]:
    """Return how a model is loaded by its name where a process sees several GPUs: on the first, if that holds it."""
    return {"device_map": "sequential"} if config.n_gpu > 1 else {}


def with_one_gpu(config: DPOConfig, model: Any) -> DPOConfig:
    """Return the configuration for one GPU where it has several; `model` is a model or the name of one."""
    if config.n_gpu <= 1:
        return config
    changes: dict[str, Any] = {"_n_gpu": 1}
    if isinstance(model, str):
        changes["model_init_kwargs"] = placement(config) | (config.model_init_kwargs or {})
    if not is_split(model):
        script = Path(sys.argv[0]).name
        logger.warning(ONE_OF, config.n_gpu, config.n_gpu, script if script.endswith(".py") else "SCRIPT.py")
    return config.changed(changes)
