"""Python's plan of a situation's answers, as JSON: python plan_in_python.py ANSWERS.

The advice becomes YAML and the YAML a configuration, as for a user; `wishbone.planning.run_plan` plans it for pairs of
the given lengths.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from wishbone.config.load import parse_config
from wishbone.config.targets import write
from wishbone.planning.advisor import advise, shape_of
from wishbone.planning.alternatives import alternatives
from wishbone.planning.gpus import find_gpu
from wishbone.planning.known_models import known_shape
from wishbone.planning.lengths import given_lengths
from wishbone.planning.memory import GIB
from wishbone.planning.room import Machine
from wishbone.planning.run_plan import Target, plan_run
from wishbone.planning.situation import NO_GPU, read_situation

MANY = 50_000


def plan_of(answers: dict[str, Any]) -> dict[str, Any]:
    situation = read_situation(answers)
    outcome = advise(situation).outcome
    config = parse_config(write("wishbone", "yaml", outcome))
    gpu = None if situation.gpu == NO_GPU else find_gpu(situation.gpu)
    memory = situation.gpu_memory_gib or (gpu.memory_gib if gpu else 0.0)
    machine = Machine("cuda", memory * GIB, memory * GIB) if gpu else Machine("cpu", 2.0**60, 2.0**60)
    shape = shape_of(situation)
    name = config.model.reference
    lengths = given_lengths(
        situation.pairs or MANY, situation.prompt_tokens, situation.completion_tokens, situation.longest_tokens
    )
    reference = None if name is None else known_shape(name) or shape
    target = Target(shape, lengths, machine, gpu, reference)
    plan = plan_run(config, target, processes=situation.gpus)
    offers = () if plan.fits else alternatives(config, target, processes=situation.gpus)
    return {
        "fits": plan.fits,
        "items": plan.rows.memory.items,
        "total": plan.rows.memory.total,
        "limit": machine.limit,
        "budget": plan.rows.budget,
        "largest": plan.rows.largest,
        "keptLayers": plan.rows.kept_layers,
        "offload": plan.rows.offload,
        "longest": plan.longest,
        "longestSequence": plan.longest_sequence,
        "stepTokens": plan.step_tokens,
        "rowTokens": plan.row_tokens,
        "seconds": plan.seconds,
        "steps": plan.schedule.steps,
        "alternatives": [[list(one.settings), one.gpu, one.memory] for one in offers],
        "text": write(situation.target, "yaml", outcome),
    }


if __name__ == "__main__":
    print(json.dumps([plan_of(answers) for answers in json.loads(sys.argv[1])]))
