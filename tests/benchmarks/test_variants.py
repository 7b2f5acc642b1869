"""Benchmarks of a step's parts: every way runs and gives the same, and an adapter is not measured as new."""

from __future__ import annotations

import os

import pytest
import torch

from benchmarks.harness.moved_adapter import move_adapter


def test_an_adapter_that_was_moved_changes_what_a_gpu_multiplies() -> None:
    layer = torch.nn.ModuleDict({"lora_A": torch.nn.Linear(4, 2), "lora_B": torch.nn.Linear(2, 4, bias=False)})
    torch.nn.init.zeros_(layer["lora_B"].weight)
    before = layer["lora_A"].weight.clone()
    move_adapter(layer)
    assert torch.equal(layer["lora_A"].weight, before) and layer["lora_B"].weight.all()


@pytest.mark.kernels
@pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="tiny shapes run in Triton's interpreter")
def test_every_way_of_a_part_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.commands import variants

    monkeypatch.setattr(variants, "ROUNDS", 1)
    shapes = variants.Shapes()
    for part, apart in (("swiglu", 0.0), ("gradient", 0.03)):
        for _, ways in getattr(shapes, part)():
            found = variants.measured(ways)
            assert len(found["ms"]) == 2 and max(found["apart"].values()) <= apart


@pytest.mark.kernels
@pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="tiny shapes run in Triton's interpreter")
def test_attention_with_other_tiles_is_the_products() -> None:
    from benchmarks.commands import attention

    layer = attention.Layer(attention.TINY, "ultrafeedback", 1)
    tiles = {"attend": ["16x4x32-8-2-128"], "query_gradient": ["32x2x32-4-2"], "key_gradient": []}
    rows = list(attention.kernels(layer, tiles))
    assert [row["system"] for row in rows] == 3 * ["attend"] + 3 * ["query_gradient"] + 2 * ["key_gradient"]
    assert max(max(row["apart"]) for row in rows if "apart" in row) <= 1e-3
