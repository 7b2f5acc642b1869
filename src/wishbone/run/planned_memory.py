"""The plan of a run's memory, kept with the run so that it can be compared with what was measured."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset

from wishbone.config.schema import RunConfig
from wishbone.data.columns import token_lengths
from wishbone.data.tokenize import ID_COLUMNS
from wishbone.errors import RequestError
from wishbone.planning import hardware
from wishbone.planning.gpus import Gpu, find_gpu
from wishbone.planning.lengths import PairLengths
from wishbone.planning.memory import GIB
from wishbone.planning.model_shape import read_shape
from wishbone.planning.room import Machine
from wishbone.planning.run_plan import RunPlan, Target, plan_run
from wishbone.planning.vision_tower import read_tower
from wishbone.trainer.image_tokens import images_of


def planned_memory(
    config: RunConfig, model: dict[str, Any], pairs: Dataset, *, processes: int = 1
) -> dict[str, Any] | None:
    """Return the memory of the largest row by item, its total and the limit, in GiB; None for unknown families.

    Args:
        config: of the run.
        model: the model's config.json.
        pairs: tokenized pairs to learn from.
        processes: of the run, one on each GPU.
    """
    plan = plan_of_run(config, model, pairs, processes=processes)
    if plan is None:
        return None
    memory = plan.rows.memory
    items = {name: round(size / GIB, 4) for name, size in memory.items.items() if size > 0}
    return {"items": items, "total": round(memory.total / GIB, 4), "limit": round(plan.machine.limit / GIB, 4)}


def plan_of_run(config: RunConfig, model: dict[str, Any], pairs: Dataset, *, processes: int) -> RunPlan | None:
    """Return the plan of a run on this machine, arguments as for `planned_memory`; None where it cannot be planned."""
    if config.model.reference is not None:
        return None  # another model's memory, whose shape is not read here
    prompt, chosen, rejected = token_lengths(pairs, ID_COLUMNS)
    machine, gpu = _machine()
    tower = read_tower(model)
    images = images_of(pairs) * tower.tokens_an_image if tower is not None else 0
    try:
        lengths = PairLengths(prompt, chosen, rejected, "as trained", images)
        target = Target(read_shape(model, config.model.name), lengths, machine, gpu, tower=tower)
        return plan_run(config, target, processes=processes)
    except RequestError:
        return None


def _machine() -> tuple[Machine, Gpu | None]:
    if not torch.cuda.is_available():
        memory = hardware.read_memory()
        return Machine("cpu", memory.total, memory.available), None
    own = hardware.read_accelerators()[0]
    try:
        gpu = find_gpu(own.name, own.memory / GIB)
    except RequestError:
        gpu = Gpu.unlisted(own.name, own.memory / GIB, own.capability or (0, 0))
    return Machine("cuda", own.memory, min(own.available, own.memory)), gpu
