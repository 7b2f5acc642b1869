"""Values that say nothing are refused in words before anything is loaded or adapted; layers are those asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_model, tiny_tokenizer

from wishbone import FastLanguageModel
from wishbone.errors import RequestError

TOKENIZER = tiny_tokenizer()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    tiny_model("llama", vocab_size=len(TOKENIZER), hidden_size=64, intermediate_size=128).save_pretrained(directory)
    TOKENIZER.save_pretrained(directory)
    return directory


def load(name: Any, **options: Any) -> Any:
    return FastLanguageModel.from_pretrained(name, **{"device_map": "cpu", "load_in_4bit": False, **options})[0]


def adapter(model: Any, **options: Any) -> Any:
    return FastLanguageModel.get_peft_model(model, **{"r": 4, **options})


def adapted(**options: Any) -> set[str]:
    """Names of the layers of a small model that get an adapter."""
    named = adapter(tiny_model("llama"), **options).named_parameters()
    return {name.split(".lora_A")[0].removeprefix("base_model.model.model.") for name, _ in named if "lora_A" in name}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_seq_length": 0}, "max_seq_length is 0; give a number of tokens"),
        ({"max_seq_length": "2048"}, "max_seq_length is '2048'; give a number"),
        ({"load_in_4bit": "no"}, "load_in_4bit is 'no'; give True or False"),
        ({"load_in_rotated_int8": "yes"}, "load_in_rotated_int8 is 'yes'; give True or False"),
        ({"load_in_fp8": "blok"}, "load_in_fp8 is 'blok'; give True, False or 'block'"),
        ({"use_gradient_checkpointing": ["unsloth"]}, r"\['unsloth'\] is not known; use True, False or 'unsloth'"),
        ({"resize_model_vocab": 10}, "resize_model_vocab is 10, and the tokenizer has 320 tokens"),
    ],
)
def test_what_from_pretrained_is_given(saved: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        load(saved, **given)


def test_a_model_is_named_by_a_path_or_a_text(saved: Path) -> None:
    assert load(saved, use_gradient_checkpointing="False").max_seq_length == 2048
    with pytest.raises(RequestError, match="model_name is None; give a hub id"):
        load(None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"r": 8.0}, "adapter rank 8.0 is no whole number"),
        ({"lora_alpha": "16"}, "adapter alpha '16' and dropout 0.0 must be numbers"),
        ({"bias": False}, "bias False is not known; use one of none, all, lora_only"),
        ({"random_state": None}, "random_state is None; give a whole number"),
        ({"target_modules": "q_proj"}, r"as a list, target_modules=\['q_proj'\], it names endings"),
        ({"modules_to_save": ["foo"]}, "modules_to_save names 'foo', and the model has no such module"),
        ({"layers_to_transform": [-1]}, "layers_to_transform names -1; give indices of layers, from 0 to 1"),
        ({"layers_to_transform": [0], "finetune_last_n_layers": 1}, "both choose layers; keep one of them"),
        ({"layers_to_transform": [7], "target_modules": "all-linear"}, "7 leaves no linear layer to adapt"),
        ({"layers_pattern": "h"}, "PEFT refuses this adapter: .*layers_pattern"),
    ],
)
def test_what_get_peft_model_is_given(given: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        adapter(tiny_model("llama"), **given)


@pytest.mark.parametrize("form", ["load_in_4bit", "load_in_rotated_int8"])
def test_quantized_modules_are_not_trained_whole(saved: Path, form: str) -> None:
    if form == "load_in_4bit":
        pytest.importorskip("bitsandbytes")
    with pytest.raises(RequestError, match="names 'gate_proj', whose weights are quantized and cannot be trained"):
        adapter(load(saved, **{form: True}), modules_to_save=["gate_proj"])
    if form == "load_in_4bit":
        with pytest.raises(RequestError, match=r"PEFT cannot put an adapter on .*PiSSA"):
            adapter(load(saved, **{form: True}), init_lora_weights="pissa")


def test_layers_are_chosen_whatever_names_the_modules() -> None:
    """PEFT reads indices of layers beside endings of names alone, and passes over them beside anything else."""
    of_last = {name for name in adapted(target_modules="all-linear") if name.startswith("layers.1.")}
    assert len(of_last) == 7
    assert adapted(target_modules="all-linear", finetune_last_n_layers=1) == of_last
    assert adapted(target_modules=None, layers_to_transform=1, layers_pattern="layers") == of_last
    assert adapted(target_modules=r".*\.(q|k)_proj", layers_to_transform=[0]) == {
        "layers.0.self_attn.q_proj",
        "layers.0.self_attn.k_proj",
    }


def test_one_module_is_trained_whole_by_its_name_alone() -> None:
    model = adapter(tiny_model("llama"), modules_to_save="lm_head")
    whole = {name for name, weight in model.named_parameters() if weight.requires_grad and "lora_" not in name}
    assert whole == {"base_model.model.lm_head.modules_to_save.default.weight"}


def test_what_changes_nothing_is_named(caplog: pytest.LogCaptureFixture) -> None:
    adapter(tiny_model("llama"), loftq_config={"loftq_bits": 4}, task_type="CAUSAL_LM")
    assert "loftq_config changes nothing without init_lora_weights='loftq'" in caplog.text
    assert "task_type='CAUSAL_LM' (it is CAUSAL_LM)" in caplog.text


def test_names_of_unsloth_that_are_not_here_say_what_to_write() -> None:
    with pytest.raises(ImportError, match="wishbone has no FastModel: FastLanguageModel loads models of text"):
        from wishbone import FastModel  # type: ignore[attr-defined]  # noqa: F401
