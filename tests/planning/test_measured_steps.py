"""Plans beside what was measured on H200s: pairs a second and memory of dense, divided, hybrid and mixture models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.harness.random_model import config_of as llama_of
from benchmarks.harness.shapes import ATTENTION, HYBRIDS, config_of
from benchmarks.harness.workloads import SIZES, draw_lengths
from wishbone.config.schema import RunConfig
from wishbone.planning.gpus import find_gpu
from wishbone.planning.lengths import PairLengths
from wishbone.planning.memory import GIB
from wishbone.planning.model_shape import read_shape
from wishbone.planning.run_plan import RunPlan, Target, gpu_machine, plan_run

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
GPU = find_gpu("H200")
TENTH = 0.1
WARM_UP, TIMED = {5: 1, 7: 1, 8: 1}, {5: 2, 7: 2}
"""Steps of calls of the scaling benchmark that were not and that were timed; of all others 2 and 3."""
MIXTURE_STEPS = 6
"""Those that the mixtures' benchmark timed."""


def rows_of(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((RESULTS / name).read_text(encoding="utf-8"))["results"]
    return [row for row in rows if row.get("status") == "ok" and row.get("system", "").startswith("wishbone")]


@dataclass(frozen=True)
class Case:
    """What was trained, as a plan reads it, and what was measured.

    Attributes:
        held: whether the peak is that of the longest row of all steps.
        padding: tokens of the rows as they were recorded, over those of the pairs.
    """

    name: str
    size: str
    pairs: int
    drawn: slice
    settings: dict[str, Any]
    gpus: int
    pairs_per_s: float
    peak_gib: float
    held: bool = True
    padding: float = 1.0

    def planned(self) -> RunPlan:
        drawn = draw_lengths("ultrafeedback", self.drawn.stop)[self.drawn]
        counts = (np.array([getattr(pair, name) for pair in drawn]) for name in ("prompt", "chosen", "rejected"))
        file = llama_of(SIZES[self.size], torch.bfloat16) if self.size in SIZES else config_of(self.size)
        settings: dict[str, Any] = {
            "model": {"name": "m", "dtype": "bfloat16", **self.settings.get("model", {})},
            "data": {"train": "d", "max_length": 2048},
            "adapter": self.settings.get("adapter", {"rank": 16}),
            "training": {
                "batch_size": min(8, self.pairs),
                "gradient_accumulation": max(1, self.pairs // 8),
                "optimizer": "adamw_torch_fused",
                "reference_store": "off",
                **self.settings.get("training", {}),
            },
            "output": {},
        }
        target = Target(read_shape(file.to_dict()), PairLengths(*counts, "drawn"), gpu_machine(GPU), GPU)
        return plan_run(RunConfig.model_validate(settings), target, processes=self.gpus)


def scaling_cases() -> list[Case]:
    cases = []
    for row in rows_of("scaling-h200.json"):
        how, gpus = row["case"].split(" x")
        weights, pairs, call = row["system"].removeprefix("wishbone-"), row["pairs"], row["call"]
        warm_up, timed = WARM_UP.get(call, 2), TIMED.get(call, 3)
        settings: dict[str, Any] = {"model": {} if weights == "bf16" else {"quantization": weights}}
        if row["sharded"]:
            settings["model"]["sharding"] = "fsdp"
        if how == "full":
            settings["adapter"] = {"method": "full"}
        drawn = slice(pairs * warm_up, pairs * (warm_up + timed))
        speed = row["pairs_per_s"]
        name = f"{row['size']} {row['system']} {row['case']} call {call}"
        cases.append(Case(name, row["size"], pairs, drawn, settings, int(gpus), speed, row["peak_gib"]))
    return cases


def hybrid_cases() -> list[Case]:
    cases = []
    for row in rows_of("hybrids-beside-trl-h200.json"):
        if row["size"] not in HYBRIDS or row["case"] != "ultrafeedback:8":
            continue
        recompute = {"activations": "recompute", "token_budget": 8192} if row["rows"]["kept_layers"] == 0 else {}
        name = f"{row['size']} {row['system']}"
        settings = {"training": recompute}
        cases.append(
            Case(name, row["size"], 8, slice(0, 72), settings, 1, row["pairs_per_s"], row["peak_gib"], held=False)
        )
    return cases


def deep_cases() -> list[Case]:
    """70B in NF4 and FP8 on one GPU, two and six steps after the first."""
    (four,) = (row for row in rows_of("70b-h200.json") if row["case"] == "ultrafeedback:4")
    (eight,) = rows_of("70b-fp8-steps-h200.json")
    cases = []
    for weights, row, pairs in ("nf4", four, 4), ("fp8", eight, 8):
        settings = {"model": {"quantization": weights}}
        drawn, speed = slice(pairs, pairs * len(row["step_seconds"])), row["pairs_per_s"]
        cases.append(Case(f"70b {weights}", "70b", pairs, drawn, settings, 1, speed, row["peak_gib"]))
    return cases


def mixture_cases() -> list[Case]:
    """Mixtures, one row a step, padded to the next length that is recorded as a CUDA graph."""
    cases = []
    for row in rows_of("experts-in-codes-h200.json"):
        stacks = ["gate_up_proj", "down_proj"] if row["case"] == "experts" else []
        weights = row["options"]["weights"]
        settings: dict[str, Any] = {"adapter": {"rank": 16, "target_modules": [*ATTENTION, *stacks]}}
        settings["model"] = {} if weights == "bf16" else {"quantization": weights}
        seconds = row["step_seconds"]
        warm_up = len(seconds) - MIXTURE_STEPS
        drawn = slice(8 * warm_up, 8 * len(seconds))
        pairs = draw_lengths("ultrafeedback", drawn.stop)
        tokens = [sum(pair.unique for pair in pairs[at : at + 8]) for at in range(drawn.start, drawn.stop, 8)]
        recorded = [min(length for length in row["graph_lengths"] if length >= count) for count in tokens]
        name, padding = f"{row['size']} {row['case']} {weights}", sum(recorded) / sum(tokens)
        speed, peak = row["pairs_per_s"], row["peak_gib"]
        cases.append(Case(name, row["size"], 8, drawn, settings, 1, speed, peak, held=False, padding=padding))
    return cases


CASES = scaling_cases() + hybrid_cases() + deep_cases() + mixture_cases()


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_plans_are_within_a_tenth_of_what_was_measured(case: Case) -> None:
    plan = case.planned()
    assert plan.seconds is not None
    speed = case.pairs / (plan.seconds * case.padding)
    memory = plan.rows.memory.allocated / GIB
    print(f"{case.name}: {speed:.2f} planned, {case.pairs_per_s:.2f} measured; {memory:.1f} and {case.peak_gib} GiB")
    assert speed == pytest.approx(case.pairs_per_s, rel=TENTH)
    if case.held:
        assert memory == pytest.approx(case.peak_gib, rel=TENTH)


def test_each_form_and_kind_is_among_them() -> None:
    names = " ".join(case.name for case in CASES)
    parts = (
        "fp8 sharded",
        "nf4 sharded",
        "bf16 full",
        "70b nf4",
        "70b fp8",
        "strong x1",
        "weak x2",
        "lfm2",
        "qwen3.5",
        "granite",
        "experts fp8",
    )
    assert [part for part in parts if part not in names] == []
