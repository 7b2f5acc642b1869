"""What a FastLanguageModel saves and publishes, and that its methods stay while trainers wrap it."""

from __future__ import annotations

import inspect
import json
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_stand_in import hub_stand_in
from peft import LoraConfig, PeftModel
from safetensors.torch import load
from tiny import tiny_model, tiny_tokenizer
from trainer.preference_runs import arguments, chat_pairs
from transformers import AutoModelForCausalLM

from wishbone import DPOConfig, DPOTrainer, FastLanguageModel
from wishbone.errors import RequestError
from wishbone.model import gguf_export
from wishbone.model.agreement import difference, real_sequences, sequence_logps
from wishbone.model.gguf_export import gguf_kinds

TOKENIZER = tiny_tokenizer()
METHODS = ("save_pretrained_merged", "push_to_hub_merged", "save_pretrained_gguf", "push_to_hub_gguf")
CONVERTER = """
import sys
from pathlib import Path
model, options = Path(sys.argv[1]), dict(zip(sys.argv[2::2], sys.argv[3::2]))
if not (model / "config.json").is_file() or not (model / "tokenizer.json").is_file():
    sys.exit("no model here")
Path(options["--outfile"]).write_text("GGUF " + options["--outtype"])
"""
QUANTIZER = """#!/bin/sh
[ -s "$1" ] || { echo "no input" >&2; exit 3; }
[ "$3" = Q5_0 ] && { echo "out of luck" >&2; exit 1; }
printf 'GGUF %s' "$3" > "$2"
"""


@pytest.fixture
def model(tmp_path: Path) -> Any:
    """An adapter model whose adapter does something."""
    base = tmp_path / "base"
    tiny_model("llama", vocab_size=len(TOKENIZER)).save_pretrained(base)
    TOKENIZER.save_pretrained(base)
    loaded, _ = FastLanguageModel.from_pretrained(str(base), load_in_4bit=False, device_map="cpu")
    peft = FastLanguageModel.get_peft_model(loaded, r=4)
    generator = torch.Generator().manual_seed(0)
    for name, weight in peft.named_parameters():
        if "lora_B" in name:
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return peft


@pytest.fixture
def llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for llama.cpp's two tools, which are called as the real ones are."""
    root = tmp_path / "llama.cpp"
    (root / "build" / "bin").mkdir(parents=True)
    (root / "convert_hf_to_gguf.py").write_text(CONVERTER)
    quantizer = root / "build" / "bin" / "llama-quantize"
    quantizer.write_text(QUANTIZER)
    quantizer.chmod(quantizer.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("LLAMA_CPP", str(root))
    return root


def logps(model: Any) -> torch.Tensor:
    return sequence_logps(model, real_sequences(TOKENIZER))


def test_arguments_are_those_of_unsloth(model: Any):
    names = list(inspect.signature(model.save_pretrained_merged).parameters)
    assert names[:5] == ["save_directory", "tokenizer", "save_method", "push_to_hub", "token"]
    names = list(inspect.signature(model.push_to_hub_merged).parameters)
    assert names[:7] == ["repo_id", "tokenizer", "save_method", "use_temp_dir", "commit_message", "private", "token"]
    names = list(inspect.signature(model.save_pretrained_gguf).parameters)
    assert names[:5] == ["save_directory", "tokenizer", "quantization_method", "first_conversion", "push_to_hub"]
    assert inspect.signature(model.save_pretrained_merged).parameters["save_method"].default == "merged_16bit"
    assert inspect.signature(model.save_pretrained_gguf).parameters["quantization_method"].default == "fast_quantized"


def test_methods_stay_while_trainers_wrap_the_model(model: Any, tmp_path: Path):
    trainer = DPOTrainer(
        model,
        args=DPOConfig(**arguments(tmp_path, max_steps=1)),
        train_dataset=chat_pairs(8),
        processing_class=TOKENIZER,
    )
    trainer.train()
    assert trainer.model is model
    trainer.model.save_pretrained_merged(tmp_path / "merged", TOKENIZER)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert difference(logps(merged), logps(trainer.model)) < 0.05


def test_methods_stay_when_trl_makes_the_adapter(model: Any, tmp_path: Path):
    base, _ = FastLanguageModel.from_pretrained(str(tmp_path / "base"), load_in_4bit=False, device_map="cpu")
    trainer = DPOTrainer(
        base,
        args=DPOConfig(**arguments(tmp_path, max_steps=2, learning_rate=0.1)),
        train_dataset=chat_pairs(20),
        processing_class=TOKENIZER,
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    trainer.train()
    assert isinstance(trainer.model, PeftModel)
    assert all(callable(getattr(trainer.model, name)) for name in METHODS)
    trainer.model.save_pretrained_merged(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with trainer.model.disable_adapter():
        before = logps(trainer.model)
    assert difference(logps(merged), logps(trainer.model)) < 0.2 * difference(before, logps(trainer.model))
    with pytest.raises(RequestError, match="save the adapter from the PEFT model around it"):
        trainer.model.save_pretrained_merged(tmp_path / "lora", save_method="lora")


def test_an_adapter_alone(model: Any, tmp_path: Path):
    assert model.save_pretrained_merged(tmp_path / "lora", save_method="lora") is None
    names = {path.name for path in (tmp_path / "lora").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert "model.safetensors" not in names
    with pytest.raises(RequestError, match="holds a model; name a directory of its own for the adapter"):
        model.save_pretrained_merged(tmp_path / "base", save_method="lora")
    model.get_base_model().model.layers[0].mlp.up_proj.lora_A["default"].weight.data[0] = float("inf")
    with pytest.raises(RequestError, match="1 of 28 adapter tensors hold NaN or infinite values"):
        model.save_pretrained_merged(tmp_path / "other", save_method="lora")


def test_only_the_main_process_writes(model: Any, tmp_path: Path):
    assert model.save_pretrained_merged(tmp_path / "merged", is_main_process=False) is None
    assert model.save_pretrained_gguf(tmp_path / "merged", is_main_process=False) == []
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("merged_4bit", "would round the merged weights to 4 bits.*use 'merged_16bit'"),
        ("merged_4bit_forced", "would round the merged weights to 4 bits"),
        ("merged_16bits", "save_method 'merged_16bits' is not known; use one of merged_16bit"),
        ("mxfp4", "save_method 'mxfp4' is not known; use one of merged_16bit, 16bit, lora"),
    ],
)
def test_methods_to_save_with_that_are_refused(model: Any, tmp_path: Path, method: str, message: str):
    for save in (model.save_pretrained_merged, model.push_to_hub_merged):
        with pytest.raises(RequestError, match=message):
            save(str(tmp_path / "merged"), TOKENIZER, method)
    assert not (tmp_path / "merged").exists()


def test_a_merged_model_is_published(model: Any):
    with hub_stand_in() as hub:
        address = model.push_to_hub_merged("someone/merged", TOKENIZER, private=True, commit_message="Tuned")
        assert address.startswith(hub.url)
        assert hub.commits == [("someone/merged", "Tuned")]
        assert hub.private == {"someone/merged": True}
        files = hub.files("someone/merged")
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= files.keys()
        assert {weight.dtype for weight in load(files["model.safetensors"]).values()} == {torch.bfloat16}
        model.push_to_hub_merged("someone/adapter", save_method="lora", token="hf_other")
        assert "adapter_model.safetensors" in hub.files("someone/adapter")


def test_a_merged_model_is_saved_and_published_at_once(model: Any, tmp_path: Path):
    with hub_stand_in() as hub:
        model.save_pretrained_merged(tmp_path / "tuned", push_to_hub=True)
        assert hub.files("someone/tuned").keys() == {path.name for path in (tmp_path / "tuned").iterdir()}


def test_a_hub_that_refuses_is_reported_and_files_here_stay(model: Any, tmp_path: Path):
    with hub_stand_in() as hub:
        hub.failing = "/commit/"
        with pytest.raises(RequestError, match=r"could not be published .*log in with `hf auth login`"):
            model.save_pretrained_merged(tmp_path / "tuned", push_to_hub=True)
        assert (tmp_path / "tuned" / "model.safetensors").is_file()
        with pytest.raises(RequestError, match="'not a name/x' could not be published"):
            model.push_to_hub_merged("not a name/x", TOKENIZER)


def test_gguf_files_need_no_llama_cpp(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They are read back: the same tokens, and log-probabilities as close as 8 bits are."""
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    [path] = model.save_pretrained_gguf(tmp_path / "tuned", TOKENIZER)
    assert path == tmp_path / "tuned" / "tuned.Q8_0.gguf"
    assert [file.name for file in (tmp_path / "tuned").iterdir()] == [path.name]
    reloaded, tokenizer = FastLanguageModel.from_pretrained(str(path), load_in_4bit=False, device_map="cpu")
    apart = (logps(reloaded) - logps(model)).abs()
    with model.disable_adapter():
        unlearned = (logps(reloaded) - logps(model)).abs()
    assert apart.mean() < 0.1 * unlearned.mean()
    assert tokenizer("What is it?")["input_ids"] == TOKENIZER("What is it?")["input_ids"]
    with pytest.raises(RequestError, match=r"q4_k_m needs llama.cpp's llama-quantize"):
        model.save_pretrained_gguf(tmp_path / "less", TOKENIZER, "q4_k_m")
    assert not (tmp_path / "less").exists()


def test_fewer_bits_come_from_llama_cpp(model: Any, tmp_path: Path, llama_cpp: Path):
    files = model.save_pretrained_gguf(tmp_path / "more", quantization_method=["q4_k_m", "f16", "quantized"])
    assert [file.name for file in files] == ["more.Q4_K_M.gguf", "more.F16.gguf"]
    assert files[0].read_bytes() == b"GGUF Q4_K_M" and files[1].read_bytes()[:4] == b"GGUF"
    assert sorted(file.name for file in (tmp_path / "more").iterdir()) == ["more.F16.gguf", "more.Q4_K_M.gguf"]


def test_a_tool_of_llama_cpp_that_fails_is_quoted(model: Any, tmp_path: Path, llama_cpp: Path):
    with pytest.raises(RequestError, match=r"llama-quantize failed with status 1 \(out of luck\); update llama.cpp"):
        model.save_pretrained_gguf(tmp_path / "tuned", quantization_method="q5_0")
    assert list((tmp_path / "tuned").iterdir()) == []


def test_a_model_that_is_not_known_here_needs_llama_cpp(
    model: Any, tmp_path: Path, llama_cpp: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gguf_export, "obstacle", lambda config, tokenizer: "this family is not written here")
    [path] = model.save_pretrained_gguf(tmp_path / "tuned", TOKENIZER)
    assert path.read_bytes() == b"GGUF q8_0"
    (llama_cpp / "convert_hf_to_gguf.py").write_text("raise SystemExit('architecture unknown')")
    with pytest.raises(RequestError, match=r"convert_hf_to_gguf.py failed with status 1 \(architecture unknown\)"):
        model.save_pretrained_gguf(tmp_path / "again")
    monkeypatch.delenv("LLAMA_CPP")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RequestError, match=r"not written here; llama.cpp's convert_hf_to_gguf.py is not found"):
        model.save_pretrained_gguf(tmp_path / "third", TOKENIZER, "f16")
    assert not (tmp_path / "third").exists()


def test_kinds_of_gguf():
    assert gguf_kinds("not_quantized") == ["bf16"]
    assert gguf_kinds(["Q8_0", "fast_quantized", "f32"]) == ["q8_0", "f32"]
    with pytest.raises(RequestError, match=r"2 problems(.|\n)*'q4_km' is not known; use one of q4_k_m"):
        gguf_kinds(["q4_km", "best"])


def test_a_gguf_file_is_published(model: Any, llama_cpp: Path, caplog: pytest.LogCaptureFixture):
    with hub_stand_in() as hub:
        model.push_to_hub_gguf("someone/tuned-gguf", TOKENIZER, "q8_0", max_shard_size="1GB")
        assert hub.files("someone/tuned-gguf").keys() == {"tuned-gguf.Q8_0.gguf"}
    assert "do nothing here: max_shard_size='1GB' (a GGUF file is one file)" in caplog.text


def test_the_adapter_names_its_base(model: Any, tmp_path: Path):
    model.save_pretrained_merged(tmp_path / "lora", save_method="lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
