"""Whether FSDP2 divides the model of a run over its processes, decided by the first process before weights are loaded.

Weights in 16 bits are then loaded as the mapped files, and only this process's part of each layer goes to its GPU.
Those that are rounded on the way are loaded on the GPU, which must hold them whole until they are divided.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset

from wishbone.config.run_directory import CHECKPOINTS, checkpoints_in
from wishbone.config.schema import RunConfig
from wishbone.errors import RequestError
from wishbone.model.device import choose_device, choose_dtype
from wishbone.planning.memory import GIB
from wishbone.planning.run_plan import RunPlan
from wishbone.run.planned_memory import plan_of_run
from wishbone.run.processes import is_first_process

FSDP: dict[str, Any] = {
    "fsdp": True,
    "fsdp_config": {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "reshard_after_forward": True},
}
"""Arguments of a trainer whose model is divided."""

OF_DIVIDED = "optimizer.bin"
"""What accelerate calls the optimizer of a divided model in a checkpoint; of a whole one it is another file."""

logger = logging.getLogger(__name__)


def divided_before(run_dir: Path) -> bool | None:
    """Return whether the newest checkpoint of a run is one of a divided model; None where there is none."""
    checkpoints = checkpoints_in(run_dir / CHECKPOINTS)
    return (checkpoints[-1] / OF_DIVIDED).exists() if checkpoints else None


def divides_model(config: RunConfig, described: dict[str, Any], pairs: Dataset, before: bool | None) -> bool:
    """Return whether the model is divided; every process must call, and all return the same.

    Args:
        config: of the run.
        described: the model's config.json.
        pairs: tokenized pairs to learn from.
        before: whether the run that is continued divided its model; None for a new one.

    Raises:
        RequestError: the run asks for it and has one process, or it continues one that did otherwise.
    """
    processes, asked = int(os.environ.get("WORLD_SIZE") or 1), config.model.sharding
    if asked == "fsdp" and processes == 1:
        raise RequestError(
            "model.sharding fsdp divides the weights over several GPUs, and this run has one process; start it with "
            "--gpus N (or --processes N on CPUs), or leave model.sharding out"
        )
    if before is not None and before != (asked == "fsdp") and (asked != "auto" or processes == 1):
        was, now = ("divided", "whole") if before else ("whole", "divided")
        remedy = "--gpus N with N of 2 or more and model.sharding fsdp" if before else "model.sharding none"
        raise RequestError(
            f"the run's checkpoints hold the optimizer of a model that is {was}, and here it would be {now}; continue "
            f"with {remedy}"
        )
    if processes == 1 or asked == "none":
        return False
    if asked == "fsdp" or before is not None:
        return asked == "fsdp" or bool(before)
    chosen = False
    if is_first_process() and torch.cuda.is_available():
        plan = plan_of_run(config, described, pairs, processes=processes)
        chosen = plan is not None and plan.sharded
        if plan is not None and chosen:
            _say(plan, processes)
    PartialState(cpu=not torch.cuda.is_available())
    return bool(broadcast_object_list([chosen])[0])


def loading_place(config: RunConfig) -> dict[str, Any]:
    """Return options of `load_model` for a model that is divided."""
    if config.model.quantization != "none":
        return {}
    return {"device": "cpu", "dtype": choose_dtype(config.model.dtype, choose_device(None))}


def _say(plan: RunPlan, processes: int) -> None:
    logger.warning(
        "One GPU does not hold this run, so FSDP2 divides the weights over %d of them: %.1f GiB of %.1f on each "
        "(model.sharding: none keeps them whole).",
        processes,
        plan.rows.memory.total / GIB,
        plan.machine.limit / GIB,
    )
