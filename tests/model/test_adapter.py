"""A LoRA adapter: changes nothing at first, trains alone, in float32, and sits where it was asked to."""

from __future__ import annotations

import pytest
import torch
from tiny import VOCABULARY, tiny_model
from torch import nn

from wishbone.errors import RequestError
from wishbone.model.adapter import add_adapter

IDS = torch.arange(3, 23).unsqueeze(0)


def _adapted(model: nn.Module) -> set[str]:
    return {
        name.split(".lora_A")[0].removeprefix("base_model.model.")
        for name, _ in model.named_modules()
        if name.endswith("lora_A")
    }


def test_a_fresh_adapter_changes_nothing_and_trains_alone() -> None:
    model = tiny_model("llama")
    before = model(IDS).logits
    adapted = add_adapter(model, rank=4, seed=1)
    assert torch.equal(adapted(IDS).logits, before)
    adapted(IDS).logits.square().mean().backward()
    trained = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert trained
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    with_gradient = {name for name, weight in adapted.named_parameters() if weight.grad is not None}
    assert with_gradient == trained


def test_the_update_is_scaled_by_alpha_over_rank() -> None:
    model = tiny_model("llama")
    layer = "model.layers.0.self_attn.q_proj"
    weight = model.get_submodule(layer).weight.detach().clone()
    adapted = add_adapter(model, rank=4, alpha=10.0, target_modules=["q_proj"])
    lora = adapted.base_model.model.get_submodule(layer)
    with torch.no_grad():
        lora.lora_B["default"].weight.normal_()
    x = torch.randn(3, 32)
    expected = x @ (weight + 10.0 / 4 * lora.lora_B["default"].weight @ lora.lora_A["default"].weight).T
    assert torch.allclose(lora(x), expected, atol=1e-5)


def test_all_linear_is_every_linear_layer_but_the_head() -> None:
    model = tiny_model("llama")
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert "lm_head" in linear
    assert _adapted(add_adapter(model, rank=2)) == linear - {"lm_head"}


def test_alpha_defaults_to_the_rank() -> None:
    adapted = add_adapter(tiny_model("llama"), rank=8)
    assert adapted.peft_config["default"].lora_alpha == 8


def test_parts_of_names_are_matched_at_dots_only() -> None:
    adapted = add_adapter(tiny_model("llama"), rank=2, target_modules=["layers.1.mlp.up_proj", "o_proj"])
    assert _adapted(adapted) == {
        "model.layers.1.mlp.up_proj",
        "model.layers.0.self_attn.o_proj",
        "model.layers.1.self_attn.o_proj",
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapter_weights_are_float32_and_the_base_keeps_its_dtype(dtype: torch.dtype) -> None:
    adapted = add_adapter(tiny_model("llama", dtype=dtype), rank=2)
    assert {weight.dtype for weight in adapted.parameters() if weight.requires_grad} == {torch.float32}
    assert {weight.dtype for weight in adapted.parameters() if not weight.requires_grad} == {dtype}


def test_the_seed_decides_and_the_global_random_state_stays() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = add_adapter(tiny_model("llama"), rank=4, seed=1)
    assert torch.equal(torch.rand(3), expected)
    same = add_adapter(tiny_model("llama"), rank=4, seed=1)
    other = add_adapter(tiny_model("llama"), rank=4, seed=2)

    def a_weights(model: nn.Module) -> torch.Tensor:
        return torch.cat([weight.flatten() for name, weight in model.named_parameters() if "lora_A" in name])

    assert torch.equal(a_weights(first), a_weights(same))
    assert not torch.equal(a_weights(first), a_weights(other))


@pytest.mark.parametrize("family", ["gemma2", "phi3", "gpt_neox", "qwen3_moe", "mamba", "lfm2", "qwen3_next"])
def test_every_kind_of_model_takes_an_adapter(family: str) -> None:
    model = tiny_model(family)
    before = model(IDS).logits
    adapted = add_adapter(model, rank=2)
    assert torch.equal(adapted(IDS).logits, before)
    trained = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert trained and all(".lora_" in name for name in trained)


def test_unknown_targets_are_refused_with_the_names_there_are() -> None:
    with pytest.raises(RequestError) as refusal:
        add_adapter(tiny_model("llama"), rank=2, target_modules=["q_proj", "query", "proj", "embed_tokens"])
    assert len(refusal.value.problems) == 3
    assert "'query'" in refusal.value.problems[0]
    assert "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj" in refusal.value.problems[0]
    assert "lm_head" not in refusal.value.problems[0]


def test_stacked_weights_of_experts_are_named_like_layers() -> None:
    names = ["q_proj", "experts.gate_up_proj", "layers.1.mlp.experts.down_proj"]
    model = add_adapter(tiny_model("qwen3_moe"), rank=4, target_modules=names)
    config = model.peft_config["default"]
    assert config.target_modules == {"q_proj"} and set(config.target_parameters) == set(names[1:])
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sum(".experts." in name for name in trained) == 2 * (2 + 1), "A and B of three stacks"
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters() if parameter.requires_grad)
    with pytest.raises(RequestError, match=r"dropout 0\.1 does not work on stacked weights"):
        add_adapter(tiny_model("qwen3_moe"), rank=4, dropout=0.1, target_modules=names)
    with pytest.raises(RequestError, match=r"q_proj.*mlp\.experts\.gate_up_proj|experts\.gate_up_proj"):
        add_adapter(tiny_model("qwen3_moe"), rank=4, target_modules=["down_proj"])


def test_the_head_and_an_empty_list_are_refused() -> None:
    with pytest.raises(RequestError, match="output head"):
        add_adapter(tiny_model("llama"), rank=2, target_modules=["lm_head"])
    with pytest.raises(RequestError, match="no target module"):
        add_adapter(tiny_model("llama"), rank=2, target_modules=[])


def test_numbers_out_of_range_are_refused_together() -> None:
    with pytest.raises(RequestError) as refusal:
        add_adapter(tiny_model("llama"), rank=0, alpha=-1.0, dropout=1.0)
    assert len(refusal.value.problems) == 3


def test_a_second_adapter_is_refused() -> None:
    adapted = add_adapter(tiny_model("llama"), rank=2)
    with pytest.raises(RequestError, match="already has an adapter"):
        add_adapter(adapted, rank=2)


def test_a_saved_adapter_gives_the_same_model_again(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from peft import PeftModel

    adapted = add_adapter(tiny_model("qwen3", vocab_size=VOCABULARY), rank=3, alpha=5.0)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_model("qwen3"), tmp_path)
    assert torch.equal(again(IDS).logits, adapted.eval()(IDS).logits)
