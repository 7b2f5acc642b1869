"""4-bit weights: what they are, that training on them is exact, and what is refused."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import save_file
from tiny import tiny_model, tiny_tokenizer
from torch import nn
from trainer.preference_runs import arguments, chat_pairs, losses
from transformers import PreTrainedModel

from wishbone import DPOConfig, DPOTrainer
from wishbone.config.schema import RunConfig
from wishbone.data.batch import TokenizedPair
from wishbone.errors import RequestError
from wishbone.model import quantization
from wishbone.model.adapter import add_adapter
from wishbone.model.load import load_model
from wishbone.model.quantization import is_quantized
from wishbone.model.saved_adapter import load_adapter
from wishbone.policy.capability import choose_form
from wishbone.policy.policy import Policy
from wishbone.run.run import train as train_run

dequantize_4bit = pytest.importorskip("bitsandbytes.functional").dequantize_4bit

NF4 = torch.tensor(
    [-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0, 0.0795803, 0.1609302,
     0.2461123, 0.33791524, 0.44070983, 0.56261700, 0.72295684, 1.0]
)  # fmt: skip
"""The 16 values of the QLoRA paper, appendix E."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model on disk, with the tokenizer of its vocabulary."""
    directory = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer()
    tiny_model("llama", vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def four_bit(saved: Path) -> PreTrainedModel:
    model, _ = load_model(str(saved), device="cpu", load_in_4bit=True)
    return model


def quantized_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in model.named_modules() if getattr(getattr(m, "weight", None), "quant_state", None)}


def dequantized(saved: Path) -> PreTrainedModel:
    """The plain float32 model whose weights are those that the codes of the 4-bit model stand for."""
    plain, _ = load_model(str(saved), device="cpu")
    with torch.no_grad():
        for name, layer in quantized_layers(four_bit(saved)).items():
            plain.get_submodule(name).weight.copy_(dequantize_4bit(layer.weight, layer.weight.quant_state))
    return plain


def test_linear_layers_are_nf4_with_double_quantization_and_nothing_else_is(saved: Path):
    model, (plain, _) = four_bit(saved), load_model(str(saved), device="cpu")
    inner = {name for name, module in plain.model.named_modules() if isinstance(module, nn.Linear)}
    assert set(quantized_layers(model)) == {f"model.{name}" for name in inner}
    assert is_quantized(model)
    assert not is_quantized(plain)
    for name, layer in quantized_layers(model).items():
        original = plain.get_submodule(name).weight.detach()
        assert layer.weight.quant_state.nested
        assert layer.weight.element_size() * layer.weight.numel() == original.numel() // 2
        blocks = original.reshape(-1, 64)
        scale = blocks.abs().amax(1, keepdim=True)
        nearest = NF4[(blocks[..., None] / scale[..., None] - NF4).abs().argmin(-1)] * scale
        error = (dequantize_4bit(layer.weight, layer.weight.quant_state).reshape(-1, 64) - nearest).abs()
        assert (error <= 0.02 * scale).all()  # scales are 8-bit numbers themselves
    for name in ("model.embed_tokens", "lm_head", "model.norm"):
        assert torch.equal(model.get_submodule(name).weight, plain.get_submodule(name).weight)


def test_logits_are_those_of_the_dequantized_weights_in_either_mode(saved: Path):
    model, plain = four_bit(saved), dequantized(saved)
    ids = torch.arange(3, 43)[None]
    for training in (False, True, False):
        model.train(training)
        with torch.no_grad():
            torch.testing.assert_close(model(ids).logits, plain(ids).logits, rtol=1e-5, atol=1e-5)


def train(model: Any, directory: Path, data: Dataset, **options: Any) -> DPOTrainer:
    trainer = DPOTrainer(
        model,
        args=DPOConfig(**arguments(directory, **options)),
        train_dataset=data,
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    return trainer


def trained(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}


@pytest.mark.slow
def test_training_equals_training_on_the_dequantized_weights(saved: Path, tmp_path: Path):
    """Same operations on the same float32 numbers: what differs is the order of sums inside matrix products."""
    data = chat_pairs(40)
    runs = [
        train(add_adapter(model, rank=4, seed=1), tmp_path, data) for model in (four_bit(saved), dequantized(saved))
    ]
    assert all(run.form_reason is None and run.preference_step.policy.form == "shared_prefix" for run in runs)
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=1e-5)
    assert len(set(losses(runs[0]))) == 3
    ours, theirs = (trained(run) for run in runs)
    assert ours.keys() == theirs.keys()
    assert {weight.dtype for weight in ours.values()} == {torch.float32}
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-3, atol=1e-5)


def test_gradients_equal_those_of_the_dequantized_weights(saved: Path):
    pairs = [
        TokenizedPair([3, 4, 5, 6, 7, 20, 21], [3, 4, 5, 6, 7, 30, 31, 32], 5, 5),
        TokenizedPair([9, 8, 40, 41, 42], [9, 8, 50], 2, 2),
    ]
    gradients = []
    for base in (four_bit(saved), dequantized(saved)):
        model = add_adapter(base, rank=4, seed=1)
        generator = torch.Generator().manual_seed(0)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
        assert choose_form(model).form == "shared_prefix"
        policy = Policy(model.train())
        batch = policy.collate(pairs)
        with policy.running():
            scores = policy.token_scores(batch)
            (scores.logps * torch.linspace(-1, 1, len(scores.logps))).sum().backward()
        gradients.append({n: w.grad for n, w in model.named_parameters() if w.requires_grad})
    for name, gradient in gradients[0].items():
        assert gradient.norm() > 0
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-5)


def test_an_adapter_keeps_its_values_when_a_trainer_takes_it(saved: Path, tmp_path: Path):
    model = add_adapter(four_bit(saved), rank=4)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}
    trainer = DPOTrainer(
        model,
        args=DPOConfig(**arguments(tmp_path)),
        train_dataset=chat_pairs(20),
        processing_class=tiny_tokenizer(),
    )
    for name, weight in before.items():
        assert torch.equal(trained(trainer)[name], weight)
        assert torch.equal(trainer.model.get_parameter(name.replace(".default.", ".ref.")), weight)


def test_an_adapter_is_saved_and_loaded(saved: Path, tmp_path: Path):
    model = add_adapter(four_bit(saved), rank=4)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_()
    model.save_pretrained(tmp_path)
    loaded = load_adapter(four_bit(saved), tmp_path)
    ids = torch.arange(3, 30)[None]
    assert isinstance(loaded, PeftModel)
    assert torch.equal(loaded.eval()(ids).logits, model.eval()(ids).logits)


def test_a_checkpoint_in_4_bits_is_loaded_as_it_is(saved: Path, tmp_path: Path):
    first = four_bit(saved)
    first.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    for asked in (False, True):
        again, _ = load_model(str(tmp_path), device="cpu", load_in_4bit=asked)
        ids = torch.arange(3, 30)[None]
        assert set(quantized_layers(again)) == set(quantized_layers(first))
        with torch.no_grad():
            assert torch.equal(again(ids).logits, first(ids).logits)


@pytest.mark.slow
def test_models_that_others_quantized_are_exact_in_the_trainer_too(saved: Path, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    config = quantization.quantization_config(4, torch.float32)
    model = AutoModelForCausalLM.from_pretrained(saved, quantization_config=config, device_map={"": "cpu"})
    data = chat_pairs(40)
    runs = [train(add_adapter(base, rank=4, seed=1), tmp_path, data) for base in (model, dequantized(saved))]
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=1e-5)


def test_what_cannot_be_quantized_is_refused_with_the_remedy(saved: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(
        RequestError, match=r"cannot be loaded in 4 bits, and bitsandbytes is not installed; install it"
    ):
        four_bit(saved)


def test_a_model_in_another_quantization_is_not_quantized_again(tmp_path: Path):
    tiny_model("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="is quantized already, with gptq, and cannot be loaded in 4 bits"):
        load_model(str(tmp_path), device="cpu", load_in_4bit=True)


def test_mxfp4_checkpoints_become_sixteen_bits(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """gpt-oss as it is published: blocks of 32 codes of 4 bits with a power of two each."""
    tokenizer = tiny_tokenizer()
    model = tiny_model("gpt_oss", vocab_size=len(tokenizer))
    generator, state, expected = torch.Generator().manual_seed(0), dict(model.state_dict()), {}
    values = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    for name in [name for name in state if name.endswith("_proj") and state[name].dim() == 3]:
        experts, k, n = state.pop(name).shape
        codes = torch.randint(0, 16, (experts, n, k // 32, 32), generator=generator)
        powers = torch.randint(-3, 1, (experts, n, k // 32), generator=generator)
        weight = torch.cat((values, -values))[codes] * 2.0 ** powers[..., None]
        expected[name] = weight.view(experts, n, k).transpose(1, 2)
        state[f"{name}_blocks"] = (codes[..., ::2] + 16 * codes[..., 1::2]).to(torch.uint8)
        state[f"{name}_scales"] = (powers + 127).to(torch.uint8)
    model.config.quantization_config = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    model.config.save_pretrained(tmp_path)
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    tokenizer.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, logger="wishbone"):
        loaded, _ = load_model(str(tmp_path), device="cpu", dtype="bfloat16")
    assert "MXFP4" in caplog.text and "3.8 times" in caplog.text
    found = dict(loaded.named_parameters())
    assert len(expected) == 4 and all(torch.equal(found[name].float(), weight) for name, weight in expected.items())
    assert not is_quantized(loaded)
    add_adapter(loaded, rank=4, target_modules=["q_proj", "experts.gate_up_proj"])


@pytest.mark.slow
def test_a_run_from_its_configuration(saved: Path, tmp_path: Path):
    rows = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No idea."} for n in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RunConfig(
        model={"name": str(saved), "quantization": "nf4"},
        data={"train": str(tmp_path / "pairs.jsonl"), "max_length": 64},
        training={"max_steps": 2, "batch_size": 2, "gradient_accumulation": 2, "reference_store": "off"},
        output={"dir": str(tmp_path / "run")},
    )
    run_dir = train_run(config)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["status"], summary["form"]) == ("done", "shared_prefix")
    loaded = load_adapter(four_bit(saved), run_dir / "adapter")
    assert is_quantized(loaded)


@pytest.mark.slow
def test_8_bits_train(saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.ERROR, logger="bitsandbytes")
    model, _ = load_model(str(saved), device="cpu", load_in_8bit=True)
    trainer = train(add_adapter(model, rank=4), tmp_path, chat_pairs(40))
    assert is_quantized(trainer.model)
    assert losses(trainer)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert len(set(losses(trainer))) == 3
