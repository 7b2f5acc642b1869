"""FP8 base models: what is converted, what is read as it is, what is refused, and that training on them is exact."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor, nn
from trainer.preference_runs import arguments, chat_pairs, losses
from transformers import PreTrainedModel

from wishbone import DPOConfig, DPOTrainer, FastLanguageModel
from wishbone.errors import RequestError
from wishbone.model import eight_bit
from wishbone.model.adapter import add_adapter
from wishbone.model.eight_bit_linear import FP8Linear
from wishbone.model.fp8 import FP8_ARITHMETIC
from wishbone.model.load import load_model
from wishbone.model.merge import merge_adapter
from wishbone.model.quantization import is_quantized
from wishbone.model.saved_adapter import load_adapter
from wishbone.ops.expert_mlp import FP8BlockStack
from wishbone.ops.fp8_quantize import quantize_rows
from wishbone.ops.frozen_linear import frozen_linear_reference
from wishbone.policy.capability import Capability, choose_form

TOKENIZER = tiny_tokenizer()
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Weights = dict[str, Tensor]


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
    model, _ = load_model(str(path), **{"device": "cpu", **options})
    return model


def fp8_layers(model: nn.Module) -> dict[str, FP8Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, FP8Linear)}


def with_dense_weights(model: PreTrainedModel, path: Path) -> PreTrainedModel:
    """A plain float64 model with the weights that the codes of `model` stand for."""
    plain = loaded(path).double()
    with torch.no_grad():
        for name, layer in fp8_layers(model).items():
            rows = hasattr(layer, "weight_scale")
            dense = layer.weight.double() * layer.weight_scale.double() if rows else layer.frozen_weight.dense()
            plain.get_submodule(name).weight.copy_(dense)
    return plain


def compute_like_the_reference(model: nn.Module, layers: dict[str, FP8Linear]) -> None:
    """Let linear layers of a plain model compute what the reference of these FP8 layers does."""
    for name, layer in layers.items():

        def forward(x: Tensor, layer: FP8Linear = layer) -> Tensor:
            return frozen_linear_reference(x, layer.frozen_weight, layer.bias)

        model.get_submodule(name).forward = forward


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 43).view(2, 20)).logits


def stored(directory: Path, source: Path, scheme: str, change: Any = None) -> Path:
    """The model in `source` as a checkpoint in FP8, as publishers write them."""
    directory.mkdir(exist_ok=True)
    tensors: Weights = {}
    for name, weight in load_file(source / "model.safetensors").items():
        stem = name.removesuffix(".weight")
        if stem.rpartition(".")[2] not in LINEAR:
            tensors[name] = weight
        elif scheme == "block":
            n, k = (-(-size // 128) for size in weight.shape)
            scale = torch.rand(n, k, generator=torch.Generator().manual_seed(len(tensors))) / 100 + 1e-3
            spread = scale.repeat_interleave(128, 0)[: weight.shape[0]].repeat_interleave(128, 1)[:, : weight.shape[1]]
            tensors[name] = (weight.float() / spread).clamp(-448, 448).to(torch.float8_e4m3fn)
            tensors[f"{stem}.weight_scale_inv"] = scale
        else:
            largest = weight.float().abs().amax(1 if scheme == "channel" else None, keepdim=True)
            scale = (largest / 400).bfloat16()  # publishers' scales need not be ours
            scale = scale.view(()) if scheme == "tensor" else scale
            tensors[name] = (weight.float() / scale.float()).to(torch.float8_e4m3fn)
            tensors[f"{stem}.weight_scale"] = scale
    if change:
        change(tensors)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    if scheme == "block":
        config["quantization_config"] = {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
        }
    else:
        weights = {"num_bits": 8, "type": "float", "strategy": scheme, "symmetric": True, "dynamic": False}
        config["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        }
    (directory / "config.json").write_text(json.dumps(config))
    TOKENIZER.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_linear_layers_of_the_backbone_are_rounded_and_nothing_else_is(saved: Path, dtype: str):
    model, plain = loaded(saved, load_in_fp8=True, dtype=dtype), loaded(saved, dtype=dtype)
    assert set(fp8_layers(model)) == {n for n, m in plain.model.named_modules(prefix="model") if type(m) is nn.Linear}
    assert is_quantized(model) and not is_quantized(plain) and model.dtype == plain.dtype
    for name, parameter in model.named_parameters():
        layer = fp8_layers(model).get(name.rpartition(".")[0])
        if layer is None:
            assert torch.equal(parameter, plain.get_parameter(name)) and parameter.dtype == plain.dtype
            continue
        rows = quantize_rows(plain.get_submodule(name.rpartition(".")[0]).weight.detach())
        expected = {"weight": rows.values, "weight_scale": rows.scale}[name.rpartition(".")[2]]
        assert parameter.dtype == expected.dtype and torch.equal(parameter.float(), expected.float())
        assert not parameter.requires_grad
    error = (logits(model) - logits(plain)).norm() / logits(plain).norm()
    assert 0.01 < error < 0.2


def test_biases_and_whole_heads_stay(tmp_path: Path):
    model = loaded(save(tmp_path, "qwen2"), load_in_fp8=True)
    plain = loaded(tmp_path)
    layer = model.model.layers[0].self_attn.q_proj
    assert isinstance(layer, FP8Linear) and torch.equal(layer.bias, plain.model.layers[0].self_attn.q_proj.bias)
    assert type(model.lm_head) is nn.Linear
    bare = layer.frozen_weight
    x = torch.randn(3, 64)
    assert torch.allclose(layer(x), bare.forward(bare.prepare(x)) + layer.bias, atol=1e-6)


def test_layers_of_odd_sizes_stay_and_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "wishbone"):
        model = loaded(save(tmp_path, intermediate_size=100), load_in_fp8=True)
    assert {name.rpartition(".")[2] for name in fp8_layers(model)} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert "6 linear layers stay in 16 bits" in caplog.text and "gate_proj" in caplog.text


def test_routers_stay(tmp_path: Path):
    model = loaded(save(tmp_path, "mixtral"), load_in_fp8=True)
    assert {name.rpartition(".")[2] for name in fp8_layers(model)} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert model.model.layers[0].mlp.gate.weight.dtype == torch.float32


def test_a_model_in_fp8_is_not_saved_as_it_is(saved: Path):
    with pytest.raises(ValueError, match="not serializable"):
        loaded(saved, load_in_fp8=True).save_pretrained(saved / "again")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["block", "channel", "tensor"])
def test_checkpoints_in_fp8_are_read_as_they_are(tmp_path: Path, scheme: str):
    source = save(tmp_path / "whole", hidden_size=160, intermediate_size=272)
    path = stored(tmp_path / "fp8", source, scheme)
    tensors = load_file(path / "model.safetensors")
    model = loaded(path)
    assert torch.equal(logits(loaded(path, load_in_fp8=True)), logits(model))
    assert len(fp8_layers(model)) == 14
    dense = {}
    for name, layer in fp8_layers(model).items():
        assert torch.equal(layer.weight.view(torch.uint8), tensors[f"{name}.weight"].view(torch.uint8))
        scale = tensors[f"{name}.weight_scale{'_inv' if scheme == 'block' else ''}"].float()
        if scheme == "block":
            scale = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
            scale = scale[: layer.out_features, : layer.in_features]
        dense[name] = layer.weight.float() * scale
        assert torch.equal(layer.frozen_weight.dense(), dense[name])
    plain = loaded(source)
    with torch.no_grad():
        for name, weight in dense.items():
            plain.get_submodule(name).weight.copy_(weight)
    rounded = 0 if scheme == "block" else 1
    error = (logits(model) - logits(plain)).norm() / logits(plain).norm()
    assert error < 1e-5 if not rounded else 1e-3 < error < 0.2


@pytest.mark.slow
def test_experts_of_a_checkpoint_in_fp8_are_read_as_they_are(tmp_path: Path):
    source = save(tmp_path / "whole", "qwen3_moe", hidden_size=128, moe_intermediate_size=128)
    path = stored(tmp_path / "fp8", source, "block")
    tensors = load_file(path / "model.safetensors")
    model, plain = loaded(path), loaded(source)
    assert len(fp8_layers(model)) == 8
    with torch.no_grad():
        for name, layer in fp8_layers(model).items():
            plain.get_submodule(name).weight.copy_(layer.frozen_weight.dense())
        for number in range(2):
            stacks, whole = (one.model.layers[number].mlp.experts for one in (model, plain))
            for expert in range(4):
                parts = {}
                for part in ("gate_proj", "up_proj", "down_proj"):
                    stem = f"model.layers.{number}.mlp.experts.{expert}.{part}.weight"
                    parts[part] = tensors[stem].float() * tensors[f"{stem}_scale_inv"]
                whole.gate_up_proj[expert] = torch.cat([parts["gate_proj"], parts["up_proj"]])
                whole.down_proj[expert] = parts["down_proj"]
            for own in ("gate_up_proj", "down_proj"):
                stack = getattr(stacks, own)
                assert type(stack) is FP8BlockStack and torch.equal(stack.dense(), getattr(whole, own))
                assert torch.equal(stack[2], stack.dense()[2])
    assert (logits(model) - logits(plain)).norm() < 1e-5 * logits(plain).norm()


def some_experts_whole(tensors: Weights) -> None:
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    tensors[name] = torch.zeros(128, 128, dtype=torch.bfloat16)
    del tensors[f"{name}_scale_inv"]


def experts_without_scales(tensors: Weights) -> None:
    del tensors["model.layers.1.mlp.experts.2.up_proj.weight_scale_inv"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inner", "change", "words"),
    [
        (128, experts_without_scales, "have no scales of rows or of blocks"),
        (128, some_experts_whole, "23 weights of experts in FP8 and 1 others whole"),
        (64, None, "do not consist of blocks of 128 x 128"),
    ],
)
def test_stored_experts_that_would_be_misread_are_refused(tmp_path: Path, inner: int, change: Any, words: str):
    source = save(tmp_path / "whole", "qwen3_moe", hidden_size=128, moe_intermediate_size=inner)
    with pytest.raises(RequestError, match=words):
        loaded(stored(tmp_path / "fp8", source, "block", change))


def test_layers_that_a_checkpoint_has_in_16_bits_stay_so(tmp_path: Path, saved: Path):
    name = "model.layers.1.mlp.down_proj.weight"
    original = load_file(saved / "model.safetensors")[name]

    def keep(tensors: Weights) -> None:
        tensors[name] = original
        del tensors[f"{name}_scale"]

    model = loaded(stored(tmp_path, saved, "channel", keep))
    assert len(fp8_layers(model)) == 13 and torch.equal(model.get_parameter(name), original.float())


def experts(tensors: Weights) -> None:
    name = "model.layers.0.mlp.experts.0.up_proj.weight"
    tensors[name] = torch.zeros(32, 32, dtype=torch.float8_e4m3fn)


def odd_blocks(tensors: Weights) -> None:
    name = "model.layers.0.mlp.up_proj.weight_scale"
    tensors[name] = torch.ones(tensors[name].shape[0], 2)


def no_codes(tensors: Weights) -> None:
    for name, tensor in list(tensors.items()):
        if tensor.dtype == torch.float8_e4m3fn:
            tensors[name] = tensor.bfloat16()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (experts, "1 FP8 weights of the checkpoint belong to no linear layer"),
        (odd_blocks, r"have no scales of rows or of blocks of 128 x 128 \(model.layers.0.mlp.up_proj.weight\)"),
        (no_codes, "no weight is float8_e4m3fn"),
    ],
)
def test_codes_that_would_be_misread_are_refused(tmp_path: Path, saved: Path, change: Any, words: str):
    with pytest.raises(RequestError, match=words):
        loaded(stored(tmp_path, saved, "channel", change))


def test_what_cannot_be_in_fp8_is_refused(tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(RequestError, match="load_in_fp8 and load_in_rotated_int8 exclude each other"):
        loaded(saved, load_in_fp8=True, load_in_4bit=True)
    path = stored(tmp_path, saved, "channel")
    with pytest.raises(RequestError, match="quantized already, with compressed-tensors, and cannot be loaded in 4"):
        loaded(path, load_in_4bit=True)
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"] |= {"num_bits": 4, "type": "int"}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RequestError, match="quantized already, with compressed-tensors, and cannot be loaded in FP8"):
        loaded(path, load_in_fp8=True)
    with pytest.raises(RequestError, match="has no linear layer that can be in FP8"):
        loaded(save(tmp_path / "odd", hidden_size=36, intermediate_size=36, head_dim=10), load_in_fp8=True)
    with pytest.raises(RequestError, match="read weights of other layers"):
        loaded(save(tmp_path / "mamba", "mamba"), load_in_fp8=True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    cuda = torch.device("cuda")
    assert "compute capability 8.0, and FP8 arithmetic begins with 8.9" in str(FP8_ARITHMETIC.obstacle(cuda))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    monkeypatch.setattr(eight_bit, "find_spec", lambda _: None)
    assert "install it with `pip install triton`" in str(FP8_ARITHMETIC.obstacle(torch.device("cuda")))
    assert FP8_ARITHMETIC.obstacle(torch.device("cpu")) is None
    assert "no FP8 arithmetic for 'mps' devices" in str(FP8_ARITHMETIC.obstacle(torch.device("mps")))


def test_casts_leave_codes_and_scales_alone(saved: Path):
    model = loaded(save(saved.parent / "biased", "qwen2"), load_in_fp8=True)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    layer = model.model.layers[0].self_attn.q_proj
    for cast in (torch.bfloat16, torch.float64):
        model.to(cast)
        assert layer.bias.dtype == model.lm_head.weight.dtype == cast
        for name, parameter in model.named_parameters():
            if name.endswith(("_proj.weight", "_scale")):
                assert parameter.dtype == before[name].dtype and torch.equal(parameter.float(), before[name].float())
    assert layer(torch.randn(2, 64, dtype=torch.float64)).dtype == torch.float64
    assert model.to("meta").model.layers[0].mlp.up_proj.weight.dtype == torch.float8_e4m3fn


def test_a_packed_row_is_recognized_as_plain_sequences(saved: Path):
    """Rounding would make a large difference of a small one, so the trial of the form does not round."""
    model = add_adapter(loaded(saved, load_in_fp8=True), rank=4)
    assert choose_form(model) == Capability("shared_prefix")
    assert all(layer.rounds_input for layer in fp8_layers(model).values())


def test_adapters_are_float32_and_saved_as_usual(tmp_path: Path, saved: Path):
    model = add_adapter(loaded(saved, load_in_fp8=True, dtype="bfloat16"), rank=4)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 14 and {p.dtype for p in trained.values()} == {torch.float32}
    a = model.get_base_model().model.layers[0].self_attn.q_proj.lora_A["default"].weight
    assert a.unique().numel() > 200  # not the few numbers of e4m3
    for parameter in trained.values():
        parameter.data += 0.1
    model.save_pretrained(tmp_path)
    again = load_adapter(loaded(saved, load_in_fp8=True, dtype="bfloat16"), tmp_path).eval()
    assert isinstance(again, PeftModel) and torch.equal(logits(again), logits(model.eval()))


@pytest.mark.parametrize("options", [{"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_adapters_that_read_weights_are_refused(saved: Path, options: dict[str, Any]):
    model = loaded(saved, load_in_fp8=True)
    with pytest.raises(RequestError, match="cannot read the base's weights in FP8"):
        add_adapter(model, rank=4, **options)
    assert len(fp8_layers(model)) == 14


def test_the_trainer_refuses_dora_too(tmp_path: Path, saved: Path):
    with pytest.raises(RequestError, match="adapter 'default' uses DoRA"):
        DPOTrainer(
            loaded(saved, load_in_fp8=True),
            args=DPOConfig(**arguments(tmp_path)),
            train_dataset=chat_pairs(8),
            processing_class=TOKENIZER,
            peft_config=LoraConfig(r=4, target_modules="all-linear", use_dora=True),
        )


def test_an_adapter_is_not_merged_into_codes(saved: Path):
    model = get_peft_model(loaded(saved, load_in_fp8=True), LoraConfig(r=4, target_modules="all-linear"))
    with pytest.raises(RuntimeError, match="Float8"):
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
    trainer.model.double()  # PEFT gives float32 to adapters of weights in FP8
    trainer.train()
    assert trainer.form_reason is None
    parts = [p.detach().flatten() for n, p in sorted(trainer.model.named_parameters()) if "lora_" in n]
    return losses(trainer), torch.cat(parts)


@pytest.mark.slow
def test_training_is_that_of_the_reference(tmp_path: Path, saved: Path):
    """Step 0 is ln 2 exactly; losses and weights are those of a plain model that rounds as the reference does.

    In float64, as a difference in the last bit of float32 may round to the next number of e4m3.
    """
    model = loaded(saved, load_in_fp8=True).double()
    expected = with_dense_weights(model, saved)
    compute_like_the_reference(expected, fp8_layers(model))
    got, weights = trained(model, tmp_path)
    wanted, wanted_weights = trained(expected, tmp_path)
    assert got[0] == pytest.approx(math.log(2), abs=1e-7)
    assert got == pytest.approx(wanted, rel=1e-9)
    assert (weights - wanted_weights).norm() <= 1e-9 * wanted_weights.norm()


@pytest.mark.slow
def test_training_on_blocks_is_that_of_the_weights_they_stand_for(tmp_path: Path, saved: Path):
    model = loaded(stored(tmp_path / "fp8", saved, "block")).double()
    expected = with_dense_weights(model, saved)
    got, weights = trained(model, tmp_path)
    wanted, wanted_weights = trained(expected, tmp_path)
    assert got == pytest.approx(wanted, rel=1e-9)
    assert (weights - wanted_weights).norm() <= 1e-9 * wanted_weights.norm()


def test_full_fine_tuning_is_refused(tmp_path: Path, saved: Path):
    with pytest.raises(ValueError, match="purely quantized"):
        DPOTrainer(
            loaded(saved, load_in_fp8=True),
            args=DPOConfig(**arguments(tmp_path)),
            train_dataset=chat_pairs(8),
            processing_class=TOKENIZER,
        )


@pytest.mark.slow
@pytest.mark.parametrize("of", ["16 bits", "fp8"])
def test_a_merge_is_into_16_bits(tmp_path: Path, saved: Path, of: str):
    path = saved if of == "16 bits" else stored(tmp_path / "fp8", saved, "channel")
    base = loaded(path, load_in_fp8=True, dtype="bfloat16")
    dense = {name: layer.frozen_weight.dense() for name, layer in fp8_layers(base).items()}
    model = add_adapter(base, rank=4)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) / 10
    merge = merge_adapter(model, tmp_path / "merged", TOKENIZER)
    assert merge.quantization is not None and merge.difference <= merge.allowed
    merged, original = load_file(tmp_path / "merged" / "model.safetensors"), load_file(saved / "model.safetensors")
    assert merged.keys() == original.keys() and {t.dtype for t in merged.values()} == {torch.bfloat16}
    name = "model.layers.1.mlp.up_proj"
    layer = model.get_base_model().get_submodule(name)
    start = original[f"{name}.weight"].float() if of == "16 bits" else dense[name]
    exact = start + layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert torch.allclose(merged[f"{name}.weight"].float(), exact, rtol=2**-6, atol=1e-3)
    assert type(loaded(tmp_path / "merged").get_submodule(name)) is nn.Linear


@pytest.mark.parametrize("asked", [True, "row", "block"])
def test_unsloths_argument(saved: Path, asked: bool | str):
    model, _ = FastLanguageModel.from_pretrained(str(saved), load_in_fp8=asked, device_map="cpu")
    assert torch.equal(logits(model), logits(loaded(saved, load_in_fp8=True)))
    model = FastLanguageModel.get_peft_model(model, r=4)
    assert len(fp8_layers(model)) == 14 and sum(p.requires_grad for p in model.parameters()) == 28
