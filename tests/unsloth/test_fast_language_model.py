"""FastLanguageModel: Unsloth's arguments, by name, order and default, and what each does here."""

from __future__ import annotations

import inspect
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hub_stand_in import hub_stand_in
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from wishbone import DPOConfig, DPOTrainer, FastLanguageModel, is_bfloat16_supported
from wishbone.engine.execution import EVERYTHING
from wishbone.errors import RequestError
from wishbone.model import quantization
from wishbone.model.quantization import is_quantized
from wishbone.policy.activations import chosen_activations

pytest.importorskip("bitsandbytes")

TOKENIZER = tiny_tokenizer()
LOADING = {
    "model_name": "unsloth/Llama-3.2-1B-Instruct",
    "max_seq_length": 2048,
    "dtype": None,
    "load_in_4bit": True,
    "load_in_8bit": False,
    "load_in_16bit": False,
    "full_finetuning": False,
    "token": None,
    "device_map": "sequential",
    "device_map_planner_kwargs": None,
    "rope_scaling": None,
    "fix_tokenizer": True,
    "trust_remote_code": False,
    "use_gradient_checkpointing": "unsloth",
    "resize_model_vocab": None,
    "revision": None,
    "use_exact_model_name": False,
    "offload_embedding": "auto",
    "float32_mixed_precision": None,
    "fast_inference": False,
    "gpu_memory_utilization": 0.5,
    "float8_kv_cache": False,
    "random_state": 3407,
    "max_lora_rank": 64,
    "disable_log_stats": True,
    "qat_scheme": None,
    "load_in_fp8": False,
    "unsloth_tiled_mlp": False,
    "text_only": False,
}
OWN = {"load_in_rotated_int8": False}
"""Arguments that Unsloth does not have, after its own."""
ADAPTER = {
    "model": inspect.Parameter.empty,
    "r": 16,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "bias": "none",
    "layers_to_transform": None,
    "layers_pattern": None,
    "finetune_last_n_layers": None,
    "use_gradient_checkpointing": "unsloth",
    "random_state": 3407,
    "max_seq_length": 2048,
    "use_rslora": False,
    "modules_to_save": None,
    "init_lora_weights": True,
    "loftq_config": {},
    "temporary_location": "_unsloth_temporary_saved_buffers",
    "qat_scheme": None,
    "target_parameters": None,
    "ensure_weight_tying": None,
    "offload_layers": None,
    "checkpoint_skip_layers": 0,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("model")
    tiny_model("llama", vocab_size=len(TOKENIZER), hidden_size=64, intermediate_size=128).save_pretrained(directory)
    TOKENIZER.save_pretrained(directory)
    return str(directory)


def load(name: str, *arguments: Any, **options: Any) -> Any:
    return FastLanguageModel.from_pretrained(name, *arguments, **{"device_map": "cpu", **options})


def adapter(model: Any, **options: Any) -> Any:
    return FastLanguageModel.get_peft_model(model, **{"r": 4, **options})


@pytest.mark.parametrize(
    ("function", "expected"),
    [(FastLanguageModel.from_pretrained, LOADING | OWN), (FastLanguageModel.get_peft_model, ADAPTER)],
)
def test_names_order_and_defaults_are_those_of_unsloth_2026_10(function: Any, expected: dict[str, Any]):
    found = inspect.signature(function).parameters
    assert [(name, parameter.default) for name, parameter in found.items()] == list(expected.items())


@pytest.mark.documents
@pytest.mark.parametrize(("heading", "expected"), [("from_pretrained", LOADING | OWN), ("get_peft_model", ADAPTER)])
def test_the_documentation_says_of_each_what_it_does(heading: str, expected: dict[str, Any]):
    page = (Path(__file__).parents[2] / "docs" / "migrate-from-unsloth.md").read_text(encoding="utf-8")
    section = page.partition(f"## Arguments of {heading}\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert sorted(name for row in rows for name in re.findall(r"`(\w+)`", row)) == sorted(expected)


def test_four_bits_are_the_default_and_what_was_asked_for_is_noted(saved: str):
    model, tokenizer = load(saved, 77)
    assert is_quantized(model)
    assert model.max_seq_length == 77
    assert model.dtype == torch.float32
    assert chosen_activations(model) == "offload"
    assert tokenizer("the cat")["input_ids"] == TOKENIZER("the cat")["input_ids"]
    peft = adapter(model)
    assert isinstance(peft, PeftModel)
    assert peft.max_seq_length == 77
    assert peft.training
    assert {weight.dtype for weight in peft.parameters() if weight.requires_grad} == {torch.float32}


@pytest.mark.parametrize(
    "arguments",
    [
        {"load_in_4bit": False},
        {"load_in_16bit": True},
        {"full_finetuning": True},
        {"load_in_4bit": False, "dtype": None},
    ],
)
def test_what_is_asked_for_alone_takes_the_place_of_four_bits(saved: str, arguments: dict[str, Any]):
    model, _ = load(saved, **arguments)
    assert not is_quantized(model)


def test_eight_bits_say_that_they_are_not_exact(saved: str, caplog: pytest.LogCaptureFixture):
    model, _ = load(saved, load_in_8bit=True)
    assert {weight.dtype for name, weight in model.named_parameters() if "q_proj" in name} == {torch.int8}
    assert "not exact" in caplog.text


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_a_dtype_that_is_asked_for(saved: str, dtype: Any):
    model, _ = load(saved, dtype=dtype, load_in_4bit=False)
    assert model.dtype == torch.bfloat16
    model, _ = load(saved, dtype=dtype)
    assert model.model.layers[0].mlp.up_proj.compute_dtype == torch.bfloat16


def test_without_bitsandbytes_sixteen_bits_are_loaded_and_one_warning_says_how_to_get_four(
    saved: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    for given in ({}, {"load_in_4bit": True}):
        caplog.clear()
        model, _ = load(saved, **given)
        assert not is_quantized(model)
        [warning] = [record.message for record in caplog.records if record.name.startswith("wishbone")]
        assert (
            "is loaded in 16 bits instead of 4: bitsandbytes is not installed; install it with `pip install" in warning
        )


CONTRADICTIONS: list[tuple[dict[str, Any], list[str]]] = [
    (
        {"load_in_4bit": True, "load_in_fp8": True},
        ["load_in_4bit=True and load_in_fp8=True exclude each other"],
    ),
    (
        {"load_in_4bit": True, "load_in_8bit": True},
        ["load_in_4bit=True and load_in_8bit=True exclude each other"],
    ),
    ({"load_in_4bit": True, "load_in_16bit": True}, ["load_in_4bit=True and load_in_16bit=True exclude"]),
    ({"load_in_4bit": True, "full_finetuning": True}, ["drop load_in_4bit, or drop full_finetuning"]),
    ({"load_in_8bit": True, "full_finetuning": True}, ["drop load_in_8bit, or drop full_finetuning"]),
    ({"load_in_fp8": True, "full_finetuning": True}, ["drop load_in_fp8, or drop full_finetuning"]),
    (
        {"load_in_4bit": True, "load_in_8bit": True, "full_finetuning": True},
        ["exclude each other", "drop load_in_4bit, load_in_8bit, or"],
    ),
    ({"use_gradient_checkpointing": "always"}, ["'always' is not known; use True, False or 'unsloth'"]),
    ({"device_map": {"a": 0, "b": 1}}, ["puts the model on 2 devices"]),
    ({"device_map": "gpu7x"}, ["device_map 'gpu7x' is no device"]),
]


@pytest.mark.parametrize(("arguments", "parts"), CONTRADICTIONS)
def test_arguments_that_contradict_each_other_are_refused_together(
    saved: str, arguments: dict[str, Any], parts: list[str]
):
    with pytest.raises(RequestError) as refused:
        load(saved, **arguments)
    assert len(refused.value.problems) == len(parts)
    for problem, part in zip(refused.value.problems, parts, strict=True):
        assert part in problem


def test_unknown_arguments_are_refused_with_near_names(saved: str):
    with pytest.raises(RequestError, match=r"no argument 'load_in_4bits' \(near: load_in_4bit"):
        load(saved, load_in_4bits=True)
    with pytest.raises(RequestError, match="2 problems"):
        load(saved, load_in_4bits=True, max_length=5)
    with pytest.raises(RequestError, match=r"no argument 'lora_alhpa' \(near: lora_alpha"):
        adapter(load(saved)[0], lora_alhpa=3)
    with pytest.raises(RequestError, match="was given model_name twice"):
        FastLanguageModel.from_pretrained(saved, model_name=saved)
    with pytest.raises(RequestError, match="takes 30 arguments and got 31"):
        FastLanguageModel.from_pretrained(*range(31))


def test_arguments_without_meaning_are_named_in_one_warning(saved: str, caplog: pytest.LogCaptureFixture):
    load(saved, fast_inference=True, rope_scaling={"type": "linear"}, max_lora_rank=64)
    [warning] = [record.message for record in caplog.records if "do nothing here" in record.message]
    assert "fast_inference=True (vLLM is not used)" in warning
    assert "rope_scaling={'type': 'linear'}" in warning
    assert "max_lora_rank" not in warning  # its default
    caplog.clear()
    adapter(load(saved)[0], temporary_location="elsewhere", use_rslora=False, max_seq_length=4096)
    [warning] = [record.message for record in caplog.records if "do nothing here" in record.message]
    assert warning.endswith("temporary_location='elsewhere' (nothing is put there).")


def test_the_adapter_is_the_one_asked_for(saved: str):
    model = adapter(
        load(saved)[0],
        r=8,
        lora_alpha=32,
        use_rslora=True,
        target_modules=["q_proj", "down_proj", "lm_head"],
        layers_to_transform=[1],
        use_gradient_checkpointing=True,
        use_dora=True,
    )
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.use_rslora, config.use_dora) == (8, 32, True, True)
    names = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    assert names == {f"base_model.model.model.layers.1.{part}" for part in ("self_attn.q_proj", "mlp.down_proj")}
    assert config.modules_to_save == ["lm_head"]
    assert model.get_parameter("base_model.model.lm_head.modules_to_save.default.weight").requires_grad
    assert chosen_activations(model) == "recompute"


def test_layers_counted_from_the_last(saved: str):
    model = adapter(load(saved)[0], finetune_last_n_layers=1)
    assert {n.split(".layers.")[1][0] for n, _ in model.named_parameters() if "lora_" in n} == {"1"}
    with pytest.raises(RequestError, match="finetune_last_n_layers 3 is not between 1 and the model's 2 layers"):
        adapter(load(saved)[0], finetune_last_n_layers=3)


def test_target_modules_that_the_model_does_not_have(saved: str, caplog: pytest.LogCaptureFixture):
    model = adapter(load(saved)[0], target_modules=["q_proj", "qkv_proj"])
    assert "qkv_proj are not in this model and get no adapter" in caplog.text
    assert {name.split(".")[-4] for name, _ in model.named_parameters() if "lora_A" in name} == {"q_proj"}
    with pytest.raises(RequestError, match="target module 'qkv_proj' is not a linear layer of this model"):
        adapter(load(saved)[0], target_modules=["qkv_proj"])
    model = adapter(load(saved)[0], target_modules=r".*\.mlp\.(up|down)_proj")
    assert {n.split(".")[-4] for n, _ in model.named_parameters() if "lora_A" in n} == {"up_proj", "down_proj"}
    with pytest.raises(RequestError, match=r"target_modules '\*' is no regular expression"):
        adapter(load(saved)[0], target_modules="*")
    with pytest.raises(RequestError, match="matches no linear layer"):
        adapter(load(saved)[0], target_modules="nothing")
    model = adapter(load(saved)[0], target_modules="all-linear")
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 14


def test_gpt2s_layers_are_linear_layers():
    config = GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    for settings in (
        {"target_modules": r".*h\.1\.attn\.c_attn"},
        {"target_modules": "all-linear", "finetune_last_n_layers": 1},
    ):
        model = FastLanguageModel.get_peft_model(GPT2LMHeadModel(config), r=2, **settings)
        names = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
        assert "base_model.model.transformer.h.1.attn.c_attn" in names
        assert all(".h.1." in name for name in names)


def test_the_seed_of_the_adapter_is_its_own(saved: str):
    first = []
    for seed in (1, 1, 2):
        base, _ = load(saved)
        torch.manual_seed(99)
        model = adapter(base, random_state=seed)
        drawn = torch.rand(4)
        torch.manual_seed(99)
        assert torch.equal(drawn, torch.rand(4))  # the global random state stayed as it was
        first.append(model.get_parameter("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"))
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


def test_full_fine_tuning_has_no_adapter(saved: str, caplog: pytest.LogCaptureFixture):
    model, _ = load(saved, full_finetuning=True, dtype="bfloat16", float32_mixed_precision=True)
    assert model.dtype == torch.float32
    assert FastLanguageModel.get_peft_model(model) is model
    assert "trained in full, so get_peft_model adds nothing" in caplog.text
    assert all(weight.requires_grad for weight in model.parameters())


def test_a_quantized_checkpoint_cannot_be_trained_in_full(saved: str, tmp_path: Path):
    model, tokenizer = load(saved)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="are quantized and cannot be trained in full; name the model that they"):
        load(str(tmp_path), full_finetuning=True)
    again, _ = load(str(tmp_path), load_in_4bit=False)
    assert is_quantized(again)


def test_loftq_needs_weights_that_are_not_quantized(saved: str):
    with pytest.raises(RequestError, match="init_lora_weights='loftq' quantizes 16-bit weights itself"):
        adapter(load(saved)[0], init_lora_weights="loftq", loftq_config={"loftq_bits": 4})


def test_an_adapter_is_loaded_on_its_base_to_train_further(saved: str, tmp_path: Path):
    model = adapter(load(saved)[0], lora_alpha=32)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_()
    model.save_pretrained_merged(tmp_path / "adapter", save_method="lora")
    loaded, tokenizer = load(str(tmp_path / "adapter"), 55)
    ids = torch.arange(3, 40)[None]
    assert torch.equal(loaded.eval()(ids).logits, model.eval()(ids).logits)
    assert is_quantized(loaded)
    assert loaded.max_seq_length == 55
    assert tokenizer.chat_template == TOKENIZER.chat_template
    assert [n for n, w in loaded.named_parameters() if w.requires_grad] == [
        n for n, w in model.named_parameters() if w.requires_grad
    ]
    assert adapter(loaded, lora_alpha=32) is loaded
    with pytest.raises(RequestError, match=r"another adapter already \(r 4 instead of 8\); train it as it is"):
        adapter(loaded, lora_alpha=32, r=8)


def broken_adapters(directory: Path, base: Path) -> dict[str, str]:
    """Ways to spoil the adapter in `directory`, and what is said of each."""
    return {
        "shape": r"of another shape: 1 tensor \(.*q_proj.lora_A.weight: \(4, 65\) instead of \(4, 64\)",
        "missing": r"missing, though the model needs them: 1 tensor \(.*q_proj.lora_A.weight\)",
        "extra": r"of the adapter, without a place in the model: 1 tensor \(base_model.model.model.layers.9",
        "base": r"is not on this machine|does not exist|does not fit",
        "damaged": "is damaged",
        "nameless": "names no base model; set base_model_name_or_path in it",
        "config": "cannot be read",
        "pickled": "holds an adapter without adapter_model.safetensors",
        "both": "holds an adapter and a model; move one of the two",
    }


@pytest.mark.parametrize("what", broken_adapters(Path(), Path()))
def test_an_adapter_that_does_not_fit_is_refused(saved: str, tmp_path: Path, what: str):
    directory = tmp_path / "adapter"
    adapter(load(saved)[0]).save_pretrained(directory)
    weights, config = directory / "adapter_model.safetensors", directory / "adapter_config.json"
    tensors, settings = load_file(weights), json.loads(config.read_text())
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    if what == "shape":
        tensors[key] = torch.zeros(4, 65)
    elif what == "missing":
        del tensors[key]
    elif what == "extra":
        tensors["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 64)
    elif what == "base":
        other = tmp_path / "other"
        tiny_model("gpt_neox", vocab_size=len(TOKENIZER)).save_pretrained(other)
        TOKENIZER.save_pretrained(other)
        settings["base_model_name_or_path"] = str(other)
    elif what == "nameless":
        settings["base_model_name_or_path"] = None
    save_file(tensors, weights)
    config.write_text("{" if what == "config" else json.dumps(settings))
    if what == "damaged":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif what == "pickled":
        weights.rename(directory / "adapter_model.bin")
    elif what == "both":
        (directory / "config.json").write_text("{}")
    with pytest.raises(RequestError, match=broken_adapters(tmp_path, tmp_path)[what]):
        load(str(directory))


def test_an_adapter_and_its_base_on_the_hub(saved: str):
    with hub_stand_in() as hub:
        base, tokenizer = load(saved, load_in_4bit=False)
        base.push_to_hub("someone/base")
        tokenizer.push_to_hub("someone/base")
        model, _ = load("someone/base", token="hf_stand_in")
        assert is_quantized(model)
        adapter(model).push_to_hub("someone/adapter")
        assert (
            json.loads(hub.files("someone/adapter")["adapter_config.json"])["base_model_name_or_path"] == "someone/base"
        )
        loaded, _ = load("someone/adapter")
        assert isinstance(loaded, PeftModel)


def test_ready_to_generate_and_back(saved: str):
    model, tokenizer = load(saved)
    model = adapter(model)
    assert FastLanguageModel.for_inference(model) is model
    assert not model.training
    assert model.config.use_cache
    assert tokenizer.padding_side == "left"
    batch = tokenizer(["the cat", "a prompt, a chosen answer"], padding=True, return_tensors="pt")
    one = model.generate(**tokenizer(["the cat"], return_tensors="pt"), max_new_tokens=4, do_sample=False)
    both = model.generate(**batch, max_new_tokens=4, do_sample=False)
    assert torch.equal(both[0, -4:], one[0, -4:])
    assert FastLanguageModel.for_training(model) is model
    assert model.training
    assert not model.config.use_cache
    assert model.get_base_model().is_gradient_checkpointing
    assert tokenizer.padding_side == "right"
    assert model.for_inference() is model
    assert not model.get_base_model().is_gradient_checkpointing
    assert model.for_training(use_gradient_checkpointing=False).training
    assert chosen_activations(model) == "keep"
    assert not model.get_base_model().is_gradient_checkpointing
    with pytest.raises(RequestError, match="was given in place of the model; give the model"):
        FastLanguageModel.for_inference(tokenizer)


def test_new_tokens_get_rows(saved: str):
    model, _ = load(saved, resize_model_vocab=400)
    assert model.get_input_embeddings().weight.shape[0] == 400
    assert model.get_output_embeddings().weight.shape[0] == 400


def test_models_that_come_from_elsewhere_get_adapters_too():
    model = adapter(tiny_model("llama", vocab_size=len(TOKENIZER)))
    assert model.max_seq_length == 2048
    with pytest.raises(RequestError, match="no tokenizer was given, and the model has none"):
        model.save_pretrained_merged("anywhere")


def test_bfloat16_on_this_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not is_bfloat16_supported()  # transformers refuses bf16=True without a GPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for capability, supported in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert is_bfloat16_supported() is supported


def test_a_normal_load_warns_of_nothing(saved: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING, logger="wishbone")
    adapter(load(saved, 2048, None, True)[0])
    assert not [record for record in caplog.records if record.name.startswith("wishbone")]


def test_what_get_peft_model_was_told_of_activations_is_what_the_trainer_does(saved: str, tmp_path: Path):
    model, tokenizer = load(saved)  # notes "unsloth" on the base, its default
    model = adapter(model, use_gradient_checkpointing=False)
    arguments = DPOConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False)
    rows = Dataset.from_list([{"prompt": "the", "chosen": " cat", "rejected": " dog"}] * 2)
    trainer = DPOTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    assert trainer.preference_step is not None
    assert trainer.execution.room is EVERYTHING
    assert trainer.execution.offload == "never"
