"""What decides the reference's values changes its identity, and nothing else does."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from tiny import tiny_model
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

from wishbone.fused.layers import FusedLayers
from wishbone.model.adapter import copy_adapter
from wishbone.policy.policy import Policy
from wishbone.reference import identity as identity_module
from wishbone.reference.identity import reference_identity
from wishbone.reference.weights import base_tensors


def identity(model: nn.Module, adapters: Sequence[str] = (), **options: Any) -> str:
    return reference_identity(Policy(model, **options), adapters)


def adapted(seed: int = 0, **options: Any) -> PeftModel:
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"r": 4, "target_modules": "all-linear", **options}
    return get_peft_model(tiny_model("llama"), LoraConfig(**settings))


@pytest.fixture(scope="module")
def base() -> str:
    return identity(tiny_model("llama"))


def test_it_is_the_same_for_the_same_model(base: str) -> None:
    assert identity(tiny_model("llama")) == base
    assert len(base) == 64


def test_files_and_names_do_not_matter(base: str, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "elsewhere")
    assert identity(AutoModelForCausalLM.from_pretrained(tmp_path / "elsewhere")) == base


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"r": 2, "lora_alpha": 3},
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [1, 2]}},
        {"use_dora": True},
    ],
)
def test_an_adapter_that_is_off_does_not_matter_however_it_is_trained(base: str, options: dict[str, Any]) -> None:
    model = adapted(**options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    assert identity(model) == base


def test_the_original_of_a_module_trained_as_a_copy_counts(base: str) -> None:
    model = adapted(target_modules=["q_proj"], modules_to_save=["lm_head"])
    with torch.no_grad():
        model.get_base_model().lm_head.original_module.weight[0, 0] += 1
    assert identity(model) != base


@pytest.mark.parametrize("name", sorted(base_tensors(tiny_model("llama", num_hidden_layers=1))))
def test_one_element_of_any_weight_or_buffer_counts(name: str) -> None:
    model = tiny_model("llama", num_hidden_layers=1)
    before = identity(model)
    with torch.no_grad():
        base_tensors(model)[name].view(-1)[-1] += 1e-3
    assert identity(model) != before


def test_dtype_form_attention_autocast_and_configuration_count(base: str) -> None:
    def eps(model: Any) -> None:
        model.config.rms_norm_eps = 1e-4

    def attention(model: Any) -> None:
        model.config._attn_implementation = "eager"

    changes: list[Callable[[Any], None]] = [eps, attention]
    others = []
    for change in changes:
        model = tiny_model("llama")
        change(model)
        others.append(identity(model))
    others.append(identity(tiny_model("llama").to(torch.bfloat16)))
    others.append(identity(tiny_model("llama").to(torch.bfloat16).to(torch.float32)))
    others.append(identity(tiny_model("llama"), form="plain"))
    others.append(identity(model := tiny_model("llama"), fused=FusedLayers(model)))
    others.append(
        reference_identity(Policy(tiny_model("llama")), autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    )
    assert len({base, *others}) == 1 + len(others)


def test_precision_of_products_counts(base: str) -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    try:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        assert identity(tiny_model("llama")) != base
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def with_reference(seed: int = 0, *, scale: float = 0.0, **options: Any) -> PeftModel:
    """A model with a frozen copy `ref` of its adapter, whose B is `scale` times random numbers."""
    model = adapted(seed, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + 0.0)
    model.add_adapter("ref", model.peft_config["default"])
    copy_adapter(model, "default", "ref")
    return model


@pytest.mark.parametrize("options", [{}, {"r": 2}, {"target_modules": ["q_proj", "embed_tokens"]}])
def test_a_frozen_adapter_that_adds_nothing_is_the_base_model(base: str, options: dict[str, Any]) -> None:
    assert identity(with_reference(seed=5, **options), ["ref"]) == base


def test_a_frozen_adapter_that_adds_something_counts(base: str) -> None:
    one, other = with_reference(scale=0.5), with_reference(seed=3, scale=0.5)
    assert len({base, identity(one, ["ref"]), identity(other, ["ref"]), identity(one)}) == 3
    assert identity(with_reference(scale=0.5), ["ref"]) == identity(one, ["ref"])
    before = identity(one, ["ref"])
    for parameter in (p for name, p in one.named_parameters() if ".default" in name):
        parameter.data.normal_()
    assert identity(one, ["ref"]) == before
    next(layer for layer in one.modules() if isinstance(layer, BaseTunerLayer)).scaling["ref"] *= 2
    assert identity(one, ["ref"]) != before


def test_magnitudes_and_biases_of_a_frozen_adapter_count() -> None:
    for options in ({"use_dora": True}, {"lora_bias": True}):
        model = with_reference(**options)
        before = identity(model, ["ref"])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".ref" in name and ("magnitude" in name or name.endswith("lora_B.ref.bias")):
                    parameter.add_(1.0)
        assert identity(model, ["ref"]) != before


def test_a_saved_copy_of_a_frozen_adapter_counts() -> None:
    model = with_reference(target_modules=["q_proj"], modules_to_save=["lm_head"])
    before = identity(model, ["ref"])
    with torch.no_grad():
        model.get_base_model().lm_head.modules_to_save["ref"].weight[0, 0] += 1
    assert identity(model, ["ref"]) != before


def test_how_weights_are_packed_counts() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")

    def packed() -> Any:
        model = tiny_model("llama")
        layer = model.model.layers[0].mlp
        linear = bitsandbytes.nn.Linear4bit(32, 64, bias=False, quant_type="nf4", compress_statistics=True)
        linear.weight = bitsandbytes.nn.Params4bit(
            layer.up_proj.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
        )
        layer.up_proj = linear.to("cpu")
        assert layer.up_proj.weight.quant_state.nested
        return model

    before = identity(packed())
    assert identity(packed()) == before
    for part in ("absmax", "code", "offset"):
        model = packed()
        state = model.model.layers[0].mlp.up_proj.weight.quant_state
        getattr(state, part).view(-1)[0] += 1
        assert identity(model) != before, part
    model = packed()
    model.model.layers[0].mlp.up_proj.weight.quant_state.state2.absmax[0] *= 2
    assert identity(model) != before
    model = packed()
    model.model.layers[0].mlp.up_proj.weight.quant_state.dtype = torch.float16
    assert identity(model) != before


def test_code_without_a_version_counts_by_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    source = "from torch import nn\nclass Own(nn.Module):\n    def forward(self, x):\n        return {} * x\n"
    (tmp_path / "own_layer_of_a_test.py").write_text(source.format(1))
    own = importlib.import_module("own_layer_of_a_test")

    def with_layer() -> str:
        identity_module._code_version.cache_clear()
        model = tiny_model("llama")
        model.model.layers[0].mlp.act_fn = own.Own()
        return identity(model)

    before = with_layer()
    assert with_layer() == before
    (tmp_path / "own_layer_of_a_test.py").write_text(source.format(22))
    assert with_layer() != before
    monkeypatch.delitem(sys.modules, "own_layer_of_a_test")
    identity_module._code_version.cache_clear()


def test_a_forward_pass_put_in_place_of_the_class_s_own_counts(base: str) -> None:
    model = tiny_model("llama")
    norm = model.model.norm
    norm.forward = model.model.layers[0].mlp.act_fn.forward
    assert identity(model) != base


def test_a_function_put_in_place_of_a_library_s_own_counts(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    own = modeling_llama.apply_rotary_pos_emb

    def replaced(*arguments: Any, **options: Any) -> Any:
        return own(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(modeling_llama, "apply_rotary_pos_emb", replaced)
        assert (once := identity(model)) != base
        patched.setattr(modeling_llama, "apply_rotary_pos_emb", functools.wraps(own)(replaced))
        assert identity(model) == once, "names that a decorator copies do not hide it"
    assert identity(model) == base
