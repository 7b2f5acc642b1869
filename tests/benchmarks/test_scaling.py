"""Steps on several GPUs: which cases share processes, and the plan beside what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.commands.scaling import launches, parse_case
from benchmarks.harness.workloads import draw_lengths
from wishbone.config.schema import RunConfig
from wishbone.planning.gpus import find_gpu
from wishbone.planning.known_models import known_shapes
from wishbone.planning.lengths import PairLengths
from wishbone.planning.memory import GIB
from wishbone.planning.run_plan import Target, gpu_machine, plan_run

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "scaling-h200.json"
ROWS: list[dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))["results"]


def test_a_divided_model_has_processes_of_its_own() -> None:
    cases = [(text, *parse_case(text)) for text in ("bf16-sharded", "bf16-strong", "bf16-full", "fp8-weak")]
    assert launches(cases) == [["bf16-strong", "fp8-weak"], ["bf16-sharded"], ["bf16-full"]]
    assert launches(cases[:1]) == [["bf16-sharded"]]


@pytest.mark.parametrize("row", ROWS, ids=[f"{row['system']} {row['case']}" for row in ROWS])
def test_a_plan_is_within_a_tenth_of_what_was_measured(row: dict[str, Any]) -> None:
    gpu, shape = find_gpu("H200"), known_shapes()["meta-llama/Llama-3.1-8B-Instruct"]
    drawn = draw_lengths("ultrafeedback", 4 * row["pairs"])
    prompt, chosen, rejected = np.array([(pair.prompt, pair.chosen, pair.rejected) for pair in drawn]).T
    config = RunConfig.model_validate(
        {
            "model": {
                "name": "m",
                "quantization": "fp8" if row["system"].endswith("fp8") else "none",
                "sharding": "fsdp" if row["sharded"] else "none",
            },
            "data": {"train": "d", "max_length": 2048, "eval_fraction": 0},
            "training": {"batch_size": row["pairs"], "gradient_accumulation": 1},
        }
    )
    target = Target(shape, PairLengths(prompt, chosen, rejected, "drawn"), gpu_machine(gpu), gpu)
    plan = plan_run(config, target, processes=int(row["case"][-1]))
    assert plan.seconds is not None and plan.sharded is row["sharded"]
    assert row["pairs"] / plan.seconds == pytest.approx(row["pairs_per_s"], rel=0.1)
    if "peak_gib" in row:
        assert plan.rows.memory.allocated / GIB == pytest.approx(row["peak_gib"], rel=0.1)
