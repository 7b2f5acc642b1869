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

from wishbone.errors import RequestError, some_of
from wishbone.trainer.arguments import DPOConfig

ONE_OF = (
    "No launcher started this script, so it trains on one of the %d GPUs that it sees. All of them: torchrun "
    "--nproc-per-node %d %s (in a notebook accelerate.notebook_launcher, with all imports inside its function). There "
    "each process adds a batch of its own to a step, or shares the pairs of one with shared_steps=True."
)
logger = logging.getLogger(__name__)


def refuse_split(model: Any) -> None:
    """Refuse a model whose layers `device_map` put on several devices; host memory and disks count as none.

    TRL 1.16's loss joins tensors of the first and of the last device and ends in PyTorch's error, and Wishbone's step
    packs rows for one.

    Raises:
        RequestError: with the devices and what to do instead.
    """
    places = getattr(model, "hf_device_map", None) or {}
    devices = sorted({str(place) for place in places.values()} - {"cpu", "disk"})
    if len(devices) > 1:
        raise RequestError(
            f"the layers of the model lie on {len(devices)} devices ({some_of(devices)}), because it was loaded with "
            "device_map or is too large for one: a step is computed on one device in each process. Load it without "
            "device_map where one GPU holds it; where none does, take fewer bits (load_in_4bit, FP8), or divide the "
            f"weights: DPOConfig(fsdp=True), started with torchrun --nproc-per-node {len(devices)}"
        )


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
    script = Path(sys.argv[0]).name
    logger.warning(ONE_OF, config.n_gpu, config.n_gpu, script if script.endswith(".py") else "SCRIPT.py")
    return config.changed(changes)
