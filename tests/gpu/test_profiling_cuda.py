"""What is measured before the first step, on a CUDA device with little memory: as much is kept as there is room for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tiny import tiny_model

from wishbone.engine.execution import Execution, Room
from wishbone.engine.probe import RowProbe, made_up_row
from wishbone.engine.profiling import profile_rows, usable_bytes
from wishbone.engine.step import PreferenceStep
from wishbone.fused.layers import FusedLayers
from wishbone.model.adapter import add_adapter
from wishbone.policy.activations import allow_recompute
from wishbone.policy.policy import Policy
from wishbone.preference.metrics import PairMetrics
from wishbone.preference.objective import Objective
from wishbone.reference.reference import AdapterDisabled

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LAYERS = 8
SIZES = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": LAYERS, "num_attention_heads": 8}
PAIR, PAIRS = 500, 16
UNMEASURED = Execution(8192, Room(1.0, 1.0, 1.0), offload="as needed")


@pytest.fixture
def step() -> Iterator[PreferenceStep]:
    model = tiny_model("llama", **SIZES).to("cuda", torch.bfloat16)
    model = add_adapter(model, rank=8, alpha=16, seed=0).train()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    allow_recompute(model.get_base_model())
    policy = Policy(model, row_multiple=128, fused=FusedLayers(model))
    yield PreferenceStep(policy, AdapterDisabled(policy), Objective())
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def limited_to(gib: float) -> None:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(gib * 2**30 / torch.cuda.mem_get_info()[1])


@pytest.mark.parametrize("gib", [1.2, 1.5, 1.8])
def test_a_row_takes_most_of_what_memory_there_is(step: PreferenceStep, gib: float) -> None:
    limited_to(gib)
    execution = profile_rows(step, UNMEASURED, np.full(64, PAIR), PAIRS, budget_fixed=True)
    assert execution.room is not None
    assert 0 < execution.room.kept(PAIR * PAIRS, LAYERS) < LAYERS
    peak, usable = RowProbe(step, PAIR).peak(PAIR * PAIRS, execution), usable_bytes(step.policy.device)
    assert peak is not None
    one_more = PAIR * PAIRS * execution.room.layer
    # the room for a kept layer is counted on top of that in which one is recomputed, and rounded down
    assert usable - 2 * one_more < peak <= usable + 0.5 * one_more, (peak, usable, one_more)


def test_rows_of_a_step_that_cannot_be_kept_are_the_longest_or_kept_whole(step: PreferenceStep) -> None:
    limited_to(1.5)
    execution = profile_rows(step, UNMEASURED, np.full(64, PAIR), PAIRS, budget_fixed=False)
    assert execution.room is not None
    budget, whole = execution.token_budget, execution.room.keeps_all(execution.token_budget, LAYERS)
    assert budget == PAIR * PAIRS or (whole and 512 <= budget < PAIR * PAIRS)
    assert not any(parameter.grad is not None for parameter in step.policy.model.parameters())
    pairs = [made_up_row(PAIR, PAIR, 100)[0] for _ in range(PAIRS)]
    torch.cuda.reset_peak_memory_stats()
    step.backward([pairs], PairMetrics(0.1), execution)
    assert torch.cuda.max_memory_allocated() <= usable_bytes(step.policy.device) + 2**26


IMPORTS = {
    "first": "from wishbone import DPOTrainer; import torch",
    "after torch": "import torch; torch.cuda.is_available(); from wishbone import DPOTrainer",
}


@pytest.mark.parametrize("order", IMPORTS)
def test_memory_comes_in_segments_that_grow(order: str) -> None:
    look = "kept = torch.empty(2**26, device='cuda'); print(torch.cuda.memory_snapshot()[0]['is_expandable'])"
    environment = {name: value for name, value in os.environ.items() if "ALLOC_CONF" not in name}
    said = subprocess.run(
        [sys.executable, "-c", f"{IMPORTS[order]}; {look}"], env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip().splitlines()[-1] == "True", said.stderr
    assert "deprecated" not in said.stderr or "ALLOC_CONF" not in said.stderr


def test_where_memory_is_plenty_rows_are_whole_steps(step: PreferenceStep) -> None:
    execution = profile_rows(step, UNMEASURED, np.full(64, PAIR), PAIRS, budget_fixed=False)
    assert execution.token_budget == PAIR * PAIRS
    assert execution.room is not None and execution.room.keeps_all(PAIR * PAIRS, LAYERS)


def test_where_memory_seems_plenty_one_row_is_run(step: PreferenceStep, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = profile_rows(step, UNMEASURED, np.full(64, PAIR), PAIRS, budget_fixed=False)
    rows: list[int] = []
    run = RowProbe.run
    monkeypatch.setattr(
        RowProbe, "run", lambda trial, tokens, execution: [rows.append(tokens), run(trial, tokens, execution)][1]
    )
    estimate = Execution(8192, Room(1e11, LAYERS * 2048.0, 8e4), offload="as needed")
    execution = profile_rows(step, estimate, np.full(64, PAIR), PAIRS, budget_fixed=False)
    assert rows == [PAIR * PAIRS] and execution.token_budget == measured.token_budget
    assert execution.room is not None and measured.room is not None
    assert execution.room.keeps_all(PAIR * PAIRS, LAYERS)
    a_row = execution.room.base + LAYERS * execution.room.layer
    assert a_row == pytest.approx(
        measured.room.base + LAYERS * measured.room.layer, rel=0.3
    )  # what is fixed counts here
