"""Ways to compute parts of a step: read from text, set as defaults, chosen from results."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.commands.one_pass import move_adapter
from benchmarks.harness.choices import BY_LIBRARY, best, choose, cut_of
from benchmarks.harness.results import Results, Row
from wishbone.ops.fp8_quantize.triton import swiglu_quantize_both_triton
from wishbone.ops.frozen_linear import fp8_hopper
from wishbone.ops.frozen_linear.tile import Tile
from wishbone.ops.low_rank_add.triton import Cut, add_low_rank_triton_


def test_choices_become_the_defaults_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for function in (swiglu_quantize_both_triton, add_low_rank_triton_, fp8_hopper.product_with_term):
        monkeypatch.setattr(function, "__kwdefaults__", function.__kwdefaults__)
    monkeypatch.setattr(fp8_hopper, "LONGEST_SUM", 0)
    monkeypatch.setattr(fp8_hopper, "LONGEST_SUM_WITH_BASE", 0)
    choose("")
    choose("held:16,cut:32x128x8a,end:128x128x64x4x5x2:4096:8192")
    assert swiglu_quantize_both_triton.__kwdefaults__["held_warps"] == 16
    assert add_low_rank_triton_.__kwdefaults__["cut"] == Cut(32, 128, 8, True) != cut_of("32x128x8")
    assert fp8_hopper.product_with_term.__kwdefaults__["tile"] == Tile(128, 128, 64, 4, 5)
    assert fp8_hopper.product_with_term.__kwdefaults__["programs"] == 2
    assert (fp8_hopper.LONGEST_SUM_WITH_BASE, fp8_hopper.LONGEST_SUM) == (4096, 8192)
    for wrong in ("rotated:1", "cut:3x4", "end:1x2:3"):
        with pytest.raises(ValueError):
            choose(wrong)


def row(part: str, case: str, **ms: float) -> Row:
    names = {"library": BY_LIBRARY, "two": "128x128x64x4x5x2", "one": "128x256x128x8x3x1", "more": "32x128x8a"}
    named = {names.get(name, name.replace("_", ":")): value for name, value in ms.items()}
    return {"kind": "variants", "size": "8b", "system": part, "case": case, "status": "ok", "ms": named}


def test_the_best_ways_are_those_of_the_least_time_over_a_layer() -> None:
    rows: list[dict[str, Any]] = [
        row("term", "a", more=2.0, **{"32x128x4": 1.0}),
        row("term", "b", more=2.0, **{"32x128x4": 4.0}),
        row("swiglu", "both", held_0=2.0, held_16=1.0),
        row("product", "64, query", library=1.0, two=0.9, one=0.5),
        row("product", "64, key", library=1.0, two=0.9, one=1.4),
        row("product", "128, down", library=1.0, two=1.1, one=1.1),
        row("product", "64, gradient of out", library=1.0, two=0.5),
        row("product", "256, gradient of gate and up", library=1.0, two=1.1, one=0.9),
    ]
    results = Results(calls=[{}])
    for one in rows:
        results.add(one)
    assert best(results) == "cut:32x128x8a,held:16,end:128x128x64x4x5x2:64:64"
    assert best(Results(calls=[{}])) == ""


def test_an_adapter_that_was_moved_changes_what_a_gpu_multiplies() -> None:
    layer = torch.nn.ModuleDict({"lora_A": torch.nn.Linear(4, 2), "lora_B": torch.nn.Linear(2, 4, bias=False)})
    torch.nn.init.zeros_(layer["lora_B"].weight)
    before = layer["lora_A"].weight.clone()
    move_adapter(layer)
    assert torch.equal(layer["lora_A"].weight, before) and layer["lora_B"].weight.all()
