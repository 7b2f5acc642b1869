"""Merging an adapter: the weights are W + B A, the files say what the adapter says, and failures leave nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from wishbone.errors import RequestError
from wishbone.model import merge as merging
from wishbone.model import merged_weights as weights_of_merging
from wishbone.model.agreement import difference, real_sequences, sequence_logps
from wishbone.model.load import load_model
from wishbone.model.merge import merge_adapter

TOKENIZER = tiny_tokenizer()


def save(directory: Path, family: str = "llama", dtype: torch.dtype = torch.bfloat16, **overrides: Any) -> Path:
    model = tiny_model(family, vocab_size=len(TOKENIZER), hidden_size=64, intermediate_size=128, **overrides).to(dtype)
    model.save_pretrained(directory)
    TOKENIZER.save_pretrained(directory)
    return directory


def adapted(model: PreTrainedModel, **options: Any) -> PeftModel:
    """An adapter of which every tensor does something."""
    peft = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **options}))
    generator = torch.Generator().manual_seed(0)
    for name, weight in peft.named_parameters():
        if "lora_B" in name or "lora_embedding" in name or "modules_to_save" in name:
            weight.data.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return peft.eval()


def loaded(path: Path, **options: Any) -> PreTrainedModel:
    model, _ = load_model(str(path), device="cpu", **options)
    return model


def is_rounded(found: Tensor, exact: Tensor) -> bool:
    """Whether all numbers are a neighbour of the exact ones in their dtype."""
    return bool(((found.float() - exact).abs() <= step(exact, found.dtype) * 1.001).all())


def step(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Between the neighbours of numbers in a dtype, of any that is not tiny."""
    return torch.finfo(dtype).eps * 2.0 ** exact.abs().clamp_min(2.0**-14).log2().floor()


def test_weights_are_w_plus_scaled_b_a_rounded_up_or_down(tmp_path: Path):
    base = loaded(save(tmp_path / "base"))
    original = load_file(tmp_path / "base" / "model.safetensors")
    model = adapted(base)
    found = merge_adapter(model, tmp_path / "merged", TOKENIZER)
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert merged.keys() == original.keys()
    assert {weight.dtype for weight in merged.values()} == {torch.bfloat16}
    for name, weight in merged.items():
        layer = model.get_base_model().get_submodule(name.removesuffix(".weight"))
        if not hasattr(layer, "lora_A"):
            assert torch.equal(weight, original[name])
            continue
        exact = original[name].float() + 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        assert is_rounded(weight, exact)
        assert not torch.equal(weight, original[name])
    assert found.difference <= found.allowed
    assert found.quantization is None
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"


def adapter_layers(model: PeftModel) -> dict[str, Any]:
    return {name: layer for name, layer in model.get_base_model().named_modules() if hasattr(layer, "lora_A")}


def nudged(model: PreTrainedModel, dtype: torch.dtype = torch.bfloat16) -> PeftModel:
    """An adapter as DPO leaves it: along the gradient, in the median by 1/20 of the step between numbers of `dtype`."""
    peft = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules="all-linear")).eval()
    log_probability(peft).backward()
    layers = adapter_layers(peft).values()
    factors = [layer.lora_B["default"].weight for layer in layers]
    for factor in factors:
        factor.data.copy_(factor.grad)
    sizes = [layer.get_delta_weight("default").abs() / step(layer.base_layer.weight.float(), dtype) for layer in layers]
    for factor in factors:
        factor.data.div_(20 * torch.cat([size.flatten() for size in sizes]).median())
    return peft


def log_probability(model: torch.nn.Module) -> Tensor:
    """Of the tokens of a few texts, summed."""
    total = torch.zeros(())
    for sequence in real_sequences(TOKENIZER):
        ids = torch.tensor([sequence])
        total = total - model(input_ids=ids, labels=ids).loss.float() * (len(sequence) - 1)
    return total


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "run"),
    [(torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)],
)
def test_what_is_less_than_half_a_step_is_kept_on_average(tmp_path: Path, dtype: torch.dtype, run: torch.dtype):
    model = nudged(loaded(save(tmp_path / "base", dtype=dtype), dtype=run), dtype)
    merge_adapter(model, tmp_path / "merged", TOKENIZER)
    original = load_file(tmp_path / "base" / "model.safetensors")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    added, random, nearest, variance = [], [], [], []
    for name, layer in adapter_layers(model).items():
        weight, found = original[f"{name}.weight"], merged[f"{name}.weight"]
        d = layer.lora_B["default"].weight.detach().double() @ layer.lora_A["default"].weight.detach().double()
        added.append(d.flatten())
        random.append((found.double() - weight.double()).flatten())
        nearest.append(((weight.double() + d).float().to(dtype).double() - weight.double()).flatten())
        variance.append((d.abs() * step(weight.double() + d, dtype)).flatten())
    d = torch.cat(added)

    def kept(change: list[Tensor]) -> float:
        return float((torch.cat(change) * d).sum() / d.square().sum())

    spread = float((torch.cat(variance) * d.square()).sum().sqrt() / d.square().sum())
    assert spread < 0.05
    assert kept(random) == pytest.approx(1.0, abs=4 * spread)
    assert kept(nearest) < 0.6


def test_the_log_probability_that_an_adapter_gains_is_kept(tmp_path: Path):
    model = nudged(loaded(save(tmp_path / "base")))
    merge_adapter(model, tmp_path / "merged", TOKENIZER)
    nearest = loaded(tmp_path / "base")
    for name, layer in adapter_layers(model).items():
        exact = layer.base_layer.weight + layer.get_delta_weight("default")
        nearest.get_submodule(name).weight.data.copy_(exact.bfloat16())
    with torch.no_grad():
        start = log_probability(loaded(tmp_path / "base"))
        gained = log_probability(model) - start
        kept, kept_by_nearest = (
            float((log_probability(merged) - start) / gained) for merged in (loaded(tmp_path / "merged"), nearest)
        )
    assert kept == pytest.approx(1.0, abs=0.2)
    assert kept_by_nearest < 0.6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_itself_stays_as_it_is(tmp_path: Path, dtype: torch.dtype):
    model = adapted(loaded(save(tmp_path / "base"), dtype=dtype))
    before = {name: (weight.clone(), weight.data_ptr()) for name, weight in model.state_dict().items()}
    merge_adapter(model.train(), tmp_path / "merged", TOKENIZER)
    assert model.training
    assert is_as_before(model, before)


def is_as_before(model: PeftModel, before: dict[str, tuple[Tensor, int]]) -> bool:
    """Whether all tensors hold the same bits, in the same place, and no layer counts as merged."""
    state = model.state_dict()
    same = all(
        now.dtype == was.dtype and torch.equal(now, was) and now.data_ptr() == place
        for now, (was, place) in ((state[name], kept) for name, kept in before.items())
    )
    return same and state.keys() == before.keys() and not any(layer.merged for layer in adapter_layers(model).values())


@pytest.mark.parametrize("where", ["merge", "rounding", "unmerge"])
def test_the_model_stays_as_it_is_when_merging_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str):
    model = adapted(loaded(save(tmp_path / "base"), dtype=torch.bfloat16))
    before = {name: (weight.clone(), weight.data_ptr()) for name, weight in model.state_dict().items()}
    layer = model.get_base_model().get_submodule("model.layers.1.mlp.up_proj")
    right = layer.get_delta_weight
    calls = {"merge": 0, "unmerge": 1}.get(where, -1)

    def without_memory(*arguments: Any, **options: Any) -> Tensor:
        nonlocal calls
        calls -= 1
        if calls == -1 or where == "rounding":
            raise torch.OutOfMemoryError("no memory")
        return right(*arguments, **options)

    if where == "rounding":
        monkeypatch.setattr(weights_of_merging, "rounded_at_random", without_memory)
    else:
        monkeypatch.setattr(layer, "get_delta_weight", without_memory)
    with pytest.raises(torch.OutOfMemoryError):
        merge_adapter(model, tmp_path / "merged", TOKENIZER)
    monkeypatch.undo()
    assert is_as_before(model, before)


KINDS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "on the head": {"target_modules": ["q_proj", "lm_head"]},
    "on the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "head trained whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "biases": {"target_modules": ["q_proj"], "bias": "lora_only"},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_every_kind_of_adapter(tmp_path: Path, kind: str, tied: bool):
    family = "qwen2" if kind == "biases" else "llama"
    model = adapted(loaded(save(tmp_path / "base", family, tie_word_embeddings=tied)), **KINDS[kind])
    merge_adapter(model, tmp_path / "merged", TOKENIZER)
    with model.disable_adapter():
        without = sequence_logps(model, real_sequences(TOKENIZER))
    wanted = sequence_logps(model, real_sequences(TOKENIZER))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    found = sequence_logps(merged, real_sequences(TOKENIZER))
    assert difference(found, wanted) < 0.1 * difference(without, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma2", "gpt_neox", "phi3", "mixtral", "qwen3_moe", "olmo2"])
def test_names_in_the_files_are_those_of_the_original(tmp_path: Path, family: str):
    base = loaded(save(tmp_path / "base", family))
    merge_adapter(adapted(base), tmp_path / "merged", TOKENIZER)
    original = load_file(tmp_path / "base" / "model.safetensors")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert {n: w.shape for n, w in merged.items()} == {n: w.shape for n, w in original.items()}


def test_a_quantized_model_is_merged_into_the_original_weights(tmp_path: Path):
    pytest.importorskip("bitsandbytes")
    save(tmp_path / "base", dtype=torch.float16)
    model = adapted(loaded(tmp_path / "base", load_in_4bit=True))
    found = merge_adapter(model, tmp_path / "merged", TOKENIZER)
    assert found.dtype == torch.float16
    assert found.quantization is not None
    assert found.quantization > 10 * found.difference
    name = "model.layers.1.mlp.down_proj"
    layer = model.get_base_model().get_submodule(name)
    original = load_file(tmp_path / "base" / "model.safetensors")[f"{name}.weight"].float()
    exact = original + 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert is_rounded(load_file(tmp_path / "merged" / "model.safetensors")[f"{name}.weight"], exact)
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())


def test_a_checkpoint_that_is_quantized_itself_is_merged_into_what_its_codes_stand_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    dequantize_4bit = pytest.importorskip("bitsandbytes.functional").dequantize_4bit
    loaded(save(tmp_path / "base"), load_in_4bit=True).save_pretrained(tmp_path / "small")
    TOKENIZER.save_pretrained(tmp_path / "small")
    model = adapted(loaded(tmp_path / "small"))
    found = merge_adapter(model, tmp_path / "merged", TOKENIZER)
    assert "has quantized weights only" in caplog.text
    assert found.quantization == pytest.approx(found.difference, abs=1e-4)
    layer = model.get_base_model().get_submodule("model.layers.0.self_attn.q_proj")
    exact = dequantize_4bit(layer.base_layer.weight, layer.base_layer.weight.quant_state).float()
    exact = exact + 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert is_rounded(merged["model.layers.0.self_attn.q_proj.weight"], exact)


def test_a_model_that_is_given_with_its_adapter_inside_is_merged_too(tmp_path: Path):
    model = adapted(loaded(save(tmp_path / "base")))
    one = merge_adapter(model, tmp_path / "one", TOKENIZER)
    other = merge_adapter(model.get_base_model(), tmp_path / "other", TOKENIZER)
    assert one.difference == other.difference
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "other")]
    assert files[0] == files[1]


def test_a_model_without_adapter_is_written_in_16_bits(tmp_path: Path):
    model = loaded(save(tmp_path / "base", dtype=torch.float32))
    merge_adapter(model, tmp_path / "merged", TOKENIZER)
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    original = load_file(tmp_path / "base" / "model.safetensors")
    assert all(torch.equal(weight, original[name].bfloat16()) for name, weight in merged.items())


def test_nan_and_infinity_are_refused_by_name_and_nothing_is_written(tmp_path: Path):
    model = adapted(loaded(save(tmp_path / "base")))
    layer = model.get_base_model().model.layers[1].mlp.up_proj
    layer.lora_A["default"].weight.data[0, 0] = float("nan")
    layer.lora_B["default"].weight.data[0, 0] = float("inf")
    with pytest.raises(RequestError, match=r"2 of 28 adapter tensors hold NaN or infinite values \(.*up_proj\.lora_A"):
        merge_adapter(model, tmp_path / "merged", TOKENIZER)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_wrong_merge_is_noticed_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = adapted(loaded(save(tmp_path / "base")))
    right = merging.merged_weights

    def one_layer_forgotten(base: PreTrainedModel, dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        weights = right(base, dtype, **options)
        name = "model.layers.0.mlp.down_proj"
        weights[f"{name}.weight"] = base.get_submodule(name).base_layer.weight.to(dtype)
        return weights

    monkeypatch.setattr(merging, "merged_weights", one_layer_forgotten)
    with pytest.raises(RequestError, match=r"differs from the adapter model by .* nats a token, and rounding"):
        merge_adapter(model, tmp_path / "merged", TOKENIZER)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.slow
@pytest.mark.parametrize(("strength", "scale"), [("strong", 0.0), ("strong", 2.0), ("below half a step", 0.0)])
def test_an_adapter_left_out_or_merged_twice_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strength: str, scale: float
):
    base = loaded(save(tmp_path / "base"))
    model = adapted(base) if strength == "strong" else nudged(base)
    right = merging.merged_weights

    def scaled(base: PreTrainedModel, dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        for layer in adapter_layers(model).values():
            layer.set_scale("default", scale)
        weights = right(base, dtype, **options)
        for layer in adapter_layers(model).values():
            layer.set_scale("default", 1.0)
        return weights

    monkeypatch.setattr(merging, "merged_weights", scaled)
    with pytest.raises(RequestError, match=r"differs from the adapter model by .* nats a token, and rounding"):
        merge_adapter(model, tmp_path / "merged", TOKENIZER)
    monkeypatch.setattr(merging, "merged_weights", right)
    merge_adapter(model, tmp_path / "merged", TOKENIZER)


def test_a_failure_while_writing_leaves_nothing_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = adapted(loaded(save(tmp_path / "base")))
    merge_adapter(model, tmp_path / "merged", TOKENIZER)
    before = {path.name: path.read_bytes() for path in (tmp_path / "merged").iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(TOKENIZER, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        merge_adapter(model, tmp_path / "merged", TOKENIZER)
    assert {path.name: path.read_bytes() for path in (tmp_path / "merged").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "merged"]


def test_a_directory_in_use_keeps_what_is_not_a_model(tmp_path: Path):
    model = adapted(loaded(save(tmp_path / "base")))
    target = tmp_path / "merged"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    (target / "model-00001-of-00002.safetensors").write_bytes(b"of an earlier model")
    merge_adapter(model, target, TOKENIZER, max_shard_size="20KB")
    assert (target / "notes.txt").read_text() == "mine"
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in target.glob("*.safetensors")}
    assert len(set(index["weight_map"].values())) > 2
    loaded(target)


def test_directories_that_a_model_must_not_be_written_to(tmp_path: Path):
    model = adapted(loaded(save(tmp_path / "base")))
    with pytest.raises(RequestError, match="is the base model's own directory; name another one"):
        merge_adapter(model, tmp_path / "base", TOKENIZER)
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="is a file; name a directory"):
        merge_adapter(model, tmp_path / "file", TOKENIZER)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(RequestError, match="holds an adapter; name a directory of its own for the model"):
        merge_adapter(model, tmp_path / "adapter", TOKENIZER)


def test_what_changed_the_base_cannot_be_moved_to_other_weights(tmp_path: Path):
    pytest.importorskip("bitsandbytes")
    model = adapted(loaded(save(tmp_path / "base"), load_in_4bit=True))
    model.peft_config["default"].init_lora_weights = "pissa"
    with pytest.raises(RequestError, match="init_lora_weights='pissa', which changes the base's weights"):
        merge_adapter(model, tmp_path / "merged", TOKENIZER)
    model.get_base_model().config.name_or_path = ""
    model.get_base_model().name_or_path = ""
    with pytest.raises(RequestError, match="not known where the model's 16-bit weights are"):
        merge_adapter(model, tmp_path / "merged", TOKENIZER)
