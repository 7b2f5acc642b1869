"""Mixtures and hybrids in published shapes: what is built, and rows of tiny ones trained in this process."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.commands import hybrids, mixtures
from benchmarks.harness.jobs import Job
from benchmarks.harness.shapes import HYBRIDS, SHAPES, STACKS, shaped_model
from benchmarks.harness.worker import Progress

BILLIONS = {
    "qwen3-30b-a3b": 10.59, "gpt-oss-20b": 7.74, "qwen3.5-2b": 1.88, "granite-4-2b": 2.00, "lfm2-2.6b": 2.57,
    "nemotron-h-4b": 2.50, "falcon-h1-1.5b": 1.48, "jamba-3b": 3.03,
}  # fmt: skip
"""Weights of each shape. LFM2, Falcon-H1 and Jamba have all their layers, the others are cut."""


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_the_weights_and_the_layers_that_it_names(name: str):
    model = shaped_model(name, "meta", torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(BILLIONS[name], abs=0.006)
    linears = {path.rpartition(".")[2] for path, one in model.named_modules() if isinstance(one, nn.Linear)}
    assert set(SHAPES[name].linears) <= linears
    assert linears - set(SHAPES[name].linears) <= {"lm_head", "out_proj", "dt_proj"}
    if name not in HYBRIDS:
        assert all(any(path.endswith(stack) for path, _ in model.named_parameters()) for stack in STACKS)
    assert sum(p.numel() for p in shaped_model(name, "meta", torch.bfloat16, tiny=True).parameters()) < 4e6


def options(**more: Any) -> argparse.Namespace:
    steps = {
        "warm_up": 1,
        "timed": 1,
        "layers": None,
        "tiny": True,
        "limit_seconds": 60.0,
        "expected_seconds": 1.0,
        "look": False,
        "watch": True,
    }
    return argparse.Namespace(**{**steps, "cuda_graphs": "auto", "shape": "qwen3-30b-a3b", **more})


def measured(job: Job, folder: Path) -> dict[str, Any]:
    module = {"hybrids": hybrids, "mixtures": mixtures}[job.kind]
    return module.measure({**job.key, **job.settings, "scratch": str(folder)}, Progress(folder / "progress"))


@pytest.mark.slow
def test_systems_of_a_hybrid_have_the_same_losses(tmp_path: Path):
    found = {
        system: measured(hybrids.job(f"lfm2-2.6b,{system},capybara:8", options()), tmp_path)
        for system in ("wishbone-bf16", "wishbone-recompute", "wishbone-plain")
    }
    shared, plain = (found[f"wishbone-{how}"] for how in ("bf16", "plain"))
    assert shared["recurrent_layers"] == plain["recurrent_layers"] == 1
    assert shared["not_on_fast_path_because"] is None
    assert found["wishbone-recompute"]["rows"]["kept_layers"] == 0
    for row in found.values():
        assert row["losses"] == pytest.approx(shared["losses"], abs=2e-3)


@pytest.mark.slow
def test_experts_in_codes_train_and_tell_their_auxiliary_loss(tmp_path: Path):
    row = measured(mixtures.job("experts:fp8:wishbone", options()), tmp_path)
    assert row["not_on_fast_path_because"] is None
    assert row["auxiliary_losses"][0] > 0
    assert "float8_e4m3fn" in row["frozen_elements"]


def test_rows_that_do_not_exist_are_refused():
    for row, reason in (("llama,trl-bf16,capybara", "shape"), ("lfm2-2.6b,trl,capybara", "system"),
                        ("lfm2-2.6b,trl-bf16,capybara:0", "above 0")):  # fmt: skip
        with pytest.raises(ValueError, match=reason):
            hybrids.job(row, options(tiny=False))
    with pytest.raises(ValueError, match="adapters"):
        mixtures.job("all:bf16:trl", options())
    job = hybrids.job("lfm2-2.6b,trl-bf16,capybara:2x4,1+2", options(tiny=False))
    assert job.case == "capybara:2x4" and (job.settings["warm_up"], job.settings["timed"]) == (1, 2)
