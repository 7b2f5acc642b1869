"""Base models in rotated int8: what is converted, what is refused, and that training on them is exact."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor, nn
from trainer.preference_runs import arguments, chat_pairs, losses
from transformers import PreTrainedModel

from wishbone import DPOConfig, DPOTrainer, FastLanguageModel
from wishbone.errors import RequestError
from wishbone.model import eight_bit
from wishbone.model.adapter import add_adapter
from wishbone.model.eight_bit_linear import Int8Linear
from wishbone.model.int8 import INT8_ARITHMETIC
from wishbone.model.load import load_model
from wishbone.model.merge import merge_adapter
from wishbone.model.quantization import dequantized, is_quantized
from wishbone.ops.expert_mlp import Int8Stack
from wishbone.ops.fp8_quantize import quantize_rows, rotated_int8
from wishbone.ops.frozen_linear import frozen_linear_reference
from wishbone.policy.capability import Capability, choose_form

TOKENIZER = tiny_tokenizer()


def save(directory: Path, family: str = "llama", **overrides: Any) -> Path:
    sizes = {"hidden_size": 64, "intermediate_size": 144, **overrides}
    tiny_model(family, vocab_size=len(TOKENIZER), **sizes).to(torch.bfloat16).save_pretrained(directory)
    TOKENIZER.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small 16-bit model on disk."""
    return save(tmp_path_factory.mktemp("model"))


def loaded(path: Path, **options: Any) -> PreTrainedModel:
    model, _ = load_model(str(path), **{"device": "cpu", "load_in_rotated_int8": True, **options})
    return model


def plain(path: Path, **options: Any) -> PreTrainedModel:
    return loaded(path, load_in_rotated_int8=False, **options)


def int8_layers(model: nn.Module) -> dict[str, Int8Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Int8Linear)}


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 43).view(2, 20)).logits


def test_linear_layers_of_the_backbone_are_rotated_and_rounded_and_nothing_else_is(saved: Path) -> None:
    model, whole = loaded(saved), plain(saved)
    layers = int8_layers(model)
    assert set(layers) == {n for n, m in whole.model.named_modules(prefix="model") if type(m) is nn.Linear}
    assert is_quantized(model) and model.dtype == whole.dtype
    for name, parameter in model.named_parameters():
        module, _, last = name.rpartition(".")
        if module not in layers:
            assert torch.equal(parameter, whole.get_parameter(name))
            continue
        weight = whole.get_submodule(module).weight.detach()
        rows = quantize_rows(weight, form=rotated_int8(weight.shape[1]))
        assert torch.equal(parameter, {"weight": rows.values, "weight_scale": rows.scale}[last])
        assert not parameter.requires_grad
        assert (layers[module].frozen_weight.dense() - weight).norm() < 0.01 * weight.norm()
    error = (logits(model) - logits(whole)).norm() / logits(whole).norm()
    assert 1e-3 < error < 0.05
    back = dequantized(loaded(saved))
    assert not int8_layers(back) and (logits(back) - logits(whole)).norm() < 0.03 * logits(whole).norm()


def test_casts_leave_codes_and_scales_alone(saved: Path) -> None:
    model = loaded(save(saved.parent / "biased", "qwen2"))
    layer, before = model.model.layers[0].self_attn.q_proj, dict(model.state_dict())
    model.to(torch.float64)
    assert layer.bias.dtype == torch.float64 and layer.weight.dtype == torch.int8
    assert torch.equal(layer.weight, before["model.layers.0.self_attn.q_proj.weight"])
    assert torch.equal(layer.weight_scale, before["model.layers.0.self_attn.q_proj.weight_scale"])
    assert layer(torch.randn(2, 64, dtype=torch.float64)).dtype == torch.float64


def test_what_cannot_be_in_int8_is_refused(tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="load_in_fp8 and load_in_rotated_int8 exclude each other"):
        loaded(saved, load_in_8bit=True)
    with pytest.raises(RequestError, match="read weights of other layers, so these cannot be in int8"):
        loaded(save(tmp_path / "mamba", "mamba"))
    with pytest.raises(ValueError, match="not serializable"):
        loaded(saved).save_pretrained(tmp_path / "again")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    cuda = torch.device("cuda")
    assert "capability 7.0, and int8 tensor cores begin with 7.5 (Turing)" in str(INT8_ARITHMETIC.obstacle(cuda))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(eight_bit, "find_spec", lambda _: None)
    assert "install it with `pip install triton`" in str(INT8_ARITHMETIC.obstacle(torch.device("cuda")))
    assert INT8_ARITHMETIC.obstacle(torch.device("cpu")) is None
    assert "no int8 products for 'mps' devices" in str(INT8_ARITHMETIC.obstacle(torch.device("mps")))


def test_a_packed_row_is_recognized_and_layers_take_adapters(saved: Path) -> None:
    model = add_adapter(loaded(saved, dtype="bfloat16"), rank=4)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert choose_form(model) == Capability("shared_prefix")
    with pytest.raises(RequestError, match="cannot read the base's weights in int8"):
        add_adapter(loaded(saved), rank=4, use_dora=True)


def test_an_adapter_is_not_merged_into_codes(saved: Path) -> None:
    model = get_peft_model(loaded(saved), LoraConfig(r=4, target_modules="all-linear"))
    with pytest.raises(RuntimeError, match="Char"):
        model.merge_adapter()


def trained(model: PreTrainedModel, directory: Path) -> tuple[list[float], Tensor]:
    torch.manual_seed(0)
    trainer = DPOTrainer(
        model,
        args=DPOConfig(**arguments(directory, max_steps=3)),
        train_dataset=chat_pairs(24),
        processing_class=TOKENIZER,
        peft_config=LoraConfig(r=4, target_modules="all-linear", lora_alpha=8),
    )
    trainer.model.double()
    trainer.train()
    assert trainer.form_reason is None
    parts = [p.detach().flatten() for n, p in sorted(trainer.model.named_parameters()) if "lora_" in n]
    return losses(trainer), torch.cat(parts)


@pytest.mark.slow
def test_training_is_that_of_the_reference(tmp_path: Path, saved: Path) -> None:
    """Step 0 is ln 2; losses and weights are those of a plain model that rounds as the reference does.

    In float64 but for rounding itself, in whose float32 few values may come to lie on the other side of a middle.
    """
    model = loaded(saved).double()
    expected = plain(saved).double()
    for name, layer in int8_layers(model).items():

        def forward(x: Tensor, layer: Int8Linear = layer) -> Tensor:
            return frozen_linear_reference(x, layer.frozen_weight, layer.bias)

        expected.get_submodule(name).forward = forward
    got, weights = trained(model, tmp_path)
    wanted, wanted_weights = trained(expected, tmp_path)
    assert got[0] == pytest.approx(math.log(2), abs=1e-7)
    assert got == pytest.approx(wanted, rel=1e-4)
    assert (weights - wanted_weights).norm() <= 1e-3 * wanted_weights.norm()


@pytest.mark.slow
def test_a_merge_is_into_the_16_bit_weights(tmp_path: Path, saved: Path) -> None:
    model = add_adapter(loaded(saved, dtype="bfloat16"), rank=4)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) / 10
    merge = merge_adapter(model, tmp_path / "merged", TOKENIZER)
    assert merge.quantization is not None and merge.difference <= merge.allowed
    merged, original = load_file(tmp_path / "merged" / "model.safetensors"), load_file(saved / "model.safetensors")
    assert merged.keys() == original.keys() and {t.dtype for t in merged.values()} == {torch.bfloat16}
    name = "model.layers.1.mlp.up_proj"
    layer = model.get_base_model().get_submodule(name)
    exact = original[f"{name}.weight"].float() + layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert torch.allclose(merged[f"{name}.weight"].float(), exact, rtol=2**-6, atol=1e-3)


def test_the_argument_beside_unsloths(saved: Path) -> None:
    model, _ = FastLanguageModel.from_pretrained(str(saved), load_in_rotated_int8=True, device_map="cpu")
    assert torch.equal(logits(model), logits(loaded(saved)))
    model = FastLanguageModel.get_peft_model(model, r=4)
    assert len(int8_layers(model)) == 14 and sum(p.requires_grad for p in model.parameters()) == 28


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "recurrent"), [("lfm2", "conv.in_proj"), ("qwen3_next", "linear_attn.in_proj_qkvz")]
)
def test_recurrent_layers_and_experts_are_in_int8(tmp_path: Path, family: str, recurrent: str) -> None:
    directory = save(tmp_path, family)
    model, whole = loaded(directory), plain(directory)
    assert any(name.endswith(recurrent) for name in int8_layers(model))
    stacks = [weight for name, weight in model.named_parameters() if ".experts." in name]
    assert bool(stacks) == (family == "qwen3_next") and all(isinstance(stack, Int8Stack) for stack in stacks)
    error = (logits(model).float() - logits(whole).float()).norm() / logits(whole).float().norm()
    assert 1e-4 < error < 0.1


@pytest.mark.slow
def test_a_gguf_file_is_made_from_the_16_bit_weights(tmp_path: Path, saved: Path) -> None:
    model, _ = FastLanguageModel.from_pretrained(str(saved), load_in_rotated_int8=True, device_map="cpu")
    model = FastLanguageModel.get_peft_model(model, r=4)
    [path] = model.save_pretrained_gguf(tmp_path / "gguf", TOKENIZER, "f16")
    read, _ = FastLanguageModel.from_pretrained(str(path), load_in_4bit=False, device_map="cpu")
    whole, ids = plain(saved), torch.arange(3, 43).view(2, 20)
    with torch.no_grad():
        apart = [(one(ids).logits.float() - whole(ids).logits.float()).norm() for one in (read, model)]
    assert apart[0] < 0.2 * apart[1], "closer to the 16-bit weights than int8 is"
