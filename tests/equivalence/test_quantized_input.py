"""Norms that quantize for FP8 layers: rows are made where they are taken, and no number changes by it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny import loaded_in_fp8, tiny_model
from torch import Tensor

from wishbone.fused import norm as fused_norm
from wishbone.fused.layers import FusedLayers
from wishbone.fused.norm import FusedNorms
from wishbone.model.adapter import add_adapter
from wishbone.ops.fp8_quantize import QuantizedRows
from wishbone.ops.frozen_linear import eight_bit

IDS = torch.tensor([[5, 9, 60, 33, 17, 99, 4, 71, 12, 12, 8], [8, 40, 3, 3, 77, 16, 90, 21, 5, 64, 100]])
READ_BY_FP8_LAYERS = {"llama": 4, "qwen2": 4, "qwen3": 4, "gemma2": 4, "olmo2": 0, "phi3": 4, "mixtral": 2}
"""Norms of a tiny model whose output goes into linear layers at once."""


def adapted(family: str = "llama", dtype: torch.dtype = torch.float32) -> PeftModel:
    model = add_adapter(loaded_in_fp8(tiny_model(family, dtype=dtype)), rank=4, seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


def apart(model: PeftModel) -> FusedLayers:
    """The model's layers and its norms fused, but strangers to each other."""
    layers = FusedLayers(model, norms_everywhere=True)
    layers.norms = FusedNorms(model, everywhere=True)
    return layers


def together(model: PeftModel) -> FusedLayers:
    return FusedLayers(model, norms_everywhere=True)


def loss_and_gradients(model: PeftModel) -> list[Tensor]:
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    if loss.requires_grad:
        loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def assert_equal(got: list[Tensor], expected: list[Tensor]) -> None:
    assert len(got) == len(expected) and all(map(torch.equal, got, expected))


class Counter:
    """Calls of a function, which runs as ever, and of what it returned the rows that are still alive."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function, self._calls = function, 0
        self._rows: list[weakref.ref[Tensor]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._calls += 1
        result = self._function(*args, **kwargs)
        rows = result if isinstance(result, QuantizedRows) else result[1]
        self._rows.append(weakref.ref(rows.values))
        return result

    def new(self) -> int:
        """Calls since the last time."""
        calls, self._calls = self._calls, 0
        return calls

    def alive(self) -> int:
        return sum(rows() is not None for rows in self._rows)


@pytest.fixture
def by_norms(monkeypatch: pytest.MonkeyPatch) -> Counter:
    counter = Counter(fused_norm.rms_norm_quantize)
    monkeypatch.setattr(fused_norm, "rms_norm_quantize", counter)
    return counter


@pytest.fixture
def by_layers(monkeypatch: pytest.MonkeyPatch) -> Counter:
    counter = Counter(eight_bit.quantize_rows)
    monkeypatch.setattr(eight_bit, "quantize_rows", counter)
    return counter


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "one_buffer"), [(torch.float32, False), (torch.bfloat16, True), (torch.float16, False)]
)
@pytest.mark.parametrize("family", READ_BY_FP8_LAYERS)
def test_loss_and_gradients_are_the_same_bit_by_bit(
    family: str, dtype: torch.dtype, one_buffer: bool, by_norms: Counter, by_layers: Counter
) -> None:
    model = adapted(family, dtype)
    if one_buffer:
        FusedLayers(model).linears.join_weights()
    strangers, layers = apart(model), together(model)
    by_layers.new()
    with strangers.running():
        expected = loss_and_gradients(model)
    made_by_layers, read = by_layers.new(), READ_BY_FP8_LAYERS[family]
    assert by_norms.new() == 0 and len(expected) > 1
    for quantized in (0, read, read):
        with layers.running():
            assert_equal(loss_and_gradients(model), expected)
        assert by_norms.new() == quantized and by_layers.new() == made_by_layers - quantized


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [True, False])
@pytest.mark.parametrize("one_buffer", [False, True])
def test_so_they_are_without_a_graph_and_without_adapters(one_buffer: bool, adapters: bool, by_norms: Counter) -> None:
    model = adapted("gemma2")
    if one_buffer:
        FusedLayers(model).linears.join_weights()
    with torch.no_grad(), nullcontext() if adapters else model.disable_adapter():
        with apart(model).running():
            expected = loss_and_gradients(model)
        with together(model).running():
            for quantized in (0, 4):
                assert_equal(loss_and_gradients(model), expected)
                assert by_norms.new() == quantized


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_layers_take_rows_too(reentrant: bool, by_norms: Counter) -> None:
    model = adapted()
    with apart(model).running():
        expected = loss_and_gradients(model)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.train()
    with together(model).running():
        for quantized in (4, 8):
            assert_equal(loss_and_gradients(model), expected)
            assert by_norms.new() == quantized


def test_tiles_make_their_own_rows(by_norms: Counter) -> None:
    """A norm whose rows were not taken makes none at its next call."""
    model = adapted()
    layers = together(model)
    with layers.running():
        loss_and_gradients(model)
    with apart(model).running(tile_tokens=5):
        expected = loss_and_gradients(model)
    for quantized in (4, 2, 2):
        with layers.running(tile_tokens=5):
            assert_equal(loss_and_gradients(model), expected)
        assert by_norms.new() == quantized


@pytest.mark.parametrize(("dtype", "quantized"), [(torch.float32, 0), (torch.bfloat16, 4)])
def test_under_autocast_rows_are_taken_where_nothing_is_cast(
    dtype: torch.dtype, quantized: int, by_norms: Counter
) -> None:
    model = adapted(dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        with apart(model).running():
            expected = loss_and_gradients(model)
        with together(model).running():
            assert_equal(loss_and_gradients(model), expected)
            assert_equal(loss_and_gradients(model), expected)
    assert by_norms.new() == quantized


def test_norms_that_are_not_fused_quantize_nothing(by_norms: Counter) -> None:
    model = adapted()
    layers = FusedLayers(model)
    with layers.linears.running():
        expected = loss_and_gradients(model)
    with layers.running():
        assert_equal(loss_and_gradients(model), expected)
        assert_equal(loss_and_gradients(model), expected)
    assert by_norms.new() == 0


class OneLayer:
    """A norm, the projection after it and an MLP, of a model whose norms are asked for their rows."""

    def __init__(self) -> None:
        model = adapted()
        layer = model.get_base_model().model.layers[0]
        self.norm, self.project, self.mlp = layer.input_layernorm, layer.self_attn.q_proj, layer.mlp
        self.x = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(2))
        self.apart, self.together = apart(model), together(model)
        with torch.no_grad(), self.together.running():
            self.project(self.norm(self.x))


@torch.no_grad()
def test_an_output_that_was_changed_in_place_is_quantized_anew(by_norms: Counter, by_layers: Counter) -> None:
    one = OneLayer()
    with one.apart.running():
        expected = one.project(one.norm(one.x).mul_(3))
    by_layers.new()
    with one.together.running():
        assert torch.equal(one.project(one.norm(one.x).mul_(3)), expected)
        assert by_norms.new() == by_layers.new() == 1
        one.norm(one.x)
        assert by_norms.new() == 0


@torch.no_grad()
def test_an_output_that_a_hook_replaced_is_quantized_anew(by_norms: Counter, by_layers: Counter) -> None:
    one = OneLayer()
    one.norm.register_forward_hook(lambda module, args, output: output * 3)
    with one.apart.running():
        expected = one.project(one.norm(one.x))
    by_layers.new()
    with one.together.running():
        assert torch.equal(one.project(one.norm(one.x)), expected)
        assert by_norms.new() == by_layers.new() == 1


@torch.no_grad()
def test_of_two_readers_the_first_takes_the_rows(by_norms: Counter, by_layers: Counter) -> None:
    one = OneLayer()
    by_layers.new()
    with one.apart.running():
        normed = one.norm(one.x)
        expected = [one.project(normed), one.mlp(normed)]
    assert by_layers.new() == 2
    with one.together.running():
        normed = one.norm(one.x)
        assert_equal([one.project(normed), one.mlp(normed)], expected)
        assert by_norms.new() == by_layers.new() == 1


@torch.no_grad()
def test_rows_of_one_output_are_not_given_to_another(by_norms: Counter) -> None:
    one = OneLayer()
    with one.apart.running():
        expected = one.project(one.norm(-one.x))
    with one.together.running():
        other = one.norm(-one.x)
        one.project(other)
        one.norm(one.x)
        assert torch.equal(one.project(other), expected)
    assert by_norms.new() == 2


def test_inference_mode_makes_no_rows(by_norms: Counter) -> None:
    one = OneLayer()
    with torch.inference_mode(), one.apart.running():
        expected = one.project(one.norm(one.x))
    with torch.inference_mode(), one.together.running():
        for quantized in (1, 0):  # the first were asked for before
            assert torch.equal(one.project(one.norm(one.x)), expected)
            assert by_norms.new() == quantized


@torch.no_grad()
def test_nothing_is_kept_alive(by_norms: Counter) -> None:
    one = OneLayer()
    with one.together.running():
        output = weakref.ref(one.norm(one.x))
        assert output() is None and by_norms.alive() == 1
        one.project(one.norm(one.x))
        assert by_norms.alive() == 0
        one.norm(one.x)
        assert by_norms.alive() == 1
    assert by_norms.alive() == 0
