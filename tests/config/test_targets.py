"""Files made of advice: valid for any text a person can type, saying what was advised, each reason once."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from wishbone.config.rules import Outcome, evaluate, rule_book
from wishbone.config.targets import AS_ASKED, Format, Target, write
from wishbone.errors import RequestError

FACTS = next(
    vector["facts"]
    for vector in json.loads((Path(__file__).parents[1] / "vectors" / "advice-rules.json").read_text())["vectors"]
)
TARGETS: list[Target] = ["wishbone", "trl", "unsloth"]
HOSTILE = [
    'a"b', "a'b", '"""', "'''", "a\\", "\\\"\\'", "a\nb", "\r\n", "#", "{model.name}", "{}", "}{", "%s", "é", "\u2028",
    "\U0001f600", "\ud800", "\x00", "\x7f", '");import os#', "${x}", "`x`", "- a", "a: b", "!!python/object:x", "*a",
]  # fmt: skip
TEXT = st.text(st.characters(), min_size=1) | st.sampled_from(HOSTILE)
MACHINES: list[dict[str, Any]] = [
    {},
    {"symptoms": ["nan"], "bf16": False, "fp8": False, "capability": 7.5, "least_f32_gib": 9},
    {"least_bf16_gib": 90, "least_fp8_gib": 90, "least_int8_gib": 90, "gpus": 4},
    {"fp8": False, "capability": 8.6},
    {"has_gpu": False, "gpu": "none", "gpu_memory": 0, "capability": 0, "bf16": False, "fp8": False, "int8": False},
    {"method": "full", "gpu_memory": 140},
    {"method": "full", "has_gpu": False, "gpu": "none", "gpu_memory": 0, "capability": 0, "bf16": False},
    {"noisy_labels": True, "symptoms": ["length_growth", "collapse", "out_of_memory"]},
    {"symptoms": ["collapse", "chosen_falling"]},
]


def outcome(**changes: Any) -> Outcome:
    return evaluate(rule_book(), FACTS | changes)


def call(script: str, name: str) -> dict[str, Any]:
    """Keyword arguments of the one call of `name` in a script, literals as values, other expressions as source."""
    calls = [
        node
        for node in ast.walk(ast.parse(script))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == name
    ]
    assert len(calls) == 1, name
    given = {str(index): argument for index, argument in enumerate(calls[0].args)}
    given |= {str(keyword.arg): keyword.value for keyword in calls[0].keywords}
    return {name: literal(value) for name, value in given.items()}


def literal(value: ast.expr) -> Any:
    try:
        return ast.literal_eval(value)
    except ValueError:
        return ast.unparse(value)


@pytest.mark.parametrize("machine", MACHINES, ids=str)
@pytest.mark.parametrize("target", TARGETS)
def test_scripts_say_what_was_advised(target: Target, machine: dict[str, Any]):
    advised = outcome(target=target, **machine)
    script = write(target, "python", advised)
    settings = advised.settings
    config = call(script, "DPOConfig")
    for setting, argument in {
        "training.learning_rate": "learning_rate",
        "training.epochs": "num_train_epochs",
        "training.batch_size": "per_device_train_batch_size",
        "training.gradient_accumulation": "gradient_accumulation_steps",
        "training.warmup_ratio": "warmup_steps",
        "training.scheduler": "lr_scheduler_type",
        "preference.loss": "loss_type",
        "preference.beta": "beta",
        "data.max_length": "max_length",
        "script.output_dir": "output_dir",
    }.items():
        assert config[argument] == settings[setting]
    for setting, argument in {
        "preference.loss_weights": "loss_weights",
        "preference.label_smoothing": "label_smoothing",
        "preference.ld_alpha": "ld_alpha",
        "preference.dpop_lambda": "dpop_lambda",
    }.items():
        assert config.get(argument) == settings.get(setting)
    assert config.get("max_grad_norm", 1) == settings["training.max_grad_norm"]
    assert config.get("optim", "adamw_torch") == settings["training.optimizer"]
    assert config.get("precompute_ref_log_probs", False) == settings["script.precompute_reference"]
    precision = {"bfloat16": ("bf16", True), "float16": ("fp16", True), "float32": ("bf16", False)}
    name, value = precision[str(settings["model.dtype"])]
    assert config[name] is value
    assert config.get("token_budget", "auto") == (settings["training.token_budget"] if target == "wishbone" else "auto")
    trainer = call(script, "DPOTrainer")
    assert trainer["ref_model"] is None
    assert trainer["processing_class"] == "tokenizer"
    lora = settings["adapter.method"] == "lora"
    if target == "trl":
        assert config["gradient_checkpointing"] is settings["script.gradient_checkpointing"]
        assert ("LoraConfig" in script) == lora
        if lora:
            assert call(script, "LoraConfig")["r"] == settings["adapter.rank"]
        assert ("BitsAndBytesConfig" in script) == (settings["model.quantization"] == "nf4")
        return
    loaded = [node for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Call)
              and ast.unparse(node.func) == "FastLanguageModel.from_pretrained"]  # fmt: skip
    arguments = {str(keyword.arg): literal(keyword.value) for keyword in loaded[0].keywords}
    assert arguments["load_in_4bit"] == (settings["model.quantization"] == "nf4")
    assert arguments.get("load_in_fp8", False) == (settings["model.quantization"] == "fp8")
    assert arguments.get("load_in_rotated_int8", False) == (settings["model.quantization"] == "int8")
    assert arguments.get("full_finetuning", False) == (not lora)
    where = call(script, "get_peft_model") if lora else arguments
    assert where["use_gradient_checkpointing"] == settings["script.gradient_checkpointing"]
    assert ("torch.float32" in script) == ("import torch" in script)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@given(model=TEXT, data=TEXT, reference=TEXT, form=st.sampled_from(["json", "parquet", "csv", "hub"]))
def test_any_text_gives_a_valid_script(target: Target, model: str, data: str, reference: str, form: str):
    script = write(target, "python", outcome(
        target=target, model=model, data=data, reference="given", reference_model=reference,
        data_format=form, gpus=2,
    ))  # fmt: skip
    tree = ast.parse(script)
    assert script.isascii()
    compile(script, "script", "exec")
    name = "AutoModelForCausalLM" if target == "trl" else "FastLanguageModel"
    loads = [node for node in ast.walk(tree) if isinstance(node, ast.Call)
             and ast.unparse(node.func) == f"{name}.from_pretrained"]  # fmt: skip
    names = [literal(node.args[0] if target == "trl" else node.keywords[0].value) for node in loads]
    expected = "HuggingFaceTB/SmolLM2-135M-Instruct" if model == "smollm2-135m-instruct" else model
    assert names == ([expected] if reference == model else [expected, reference])
    loaded = call(script, "load_dataset")
    assert (loaded["0"], loaded.get("data_files")) == ((data, None) if form == "hub" else (form, data))
    other = "m" if reference == model else "r"
    harmless = write(target, "python", outcome(
        target=target, model="m", data="d", reference="given", reference_model=other,
        data_format=form, gpus=2,
    ))  # fmt: skip
    skeleton = [type(node) for node in ast.walk(tree)]
    assert skeleton == [type(node) for node in ast.walk(ast.parse(harmless))]


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@given(model=TEXT, data=TEXT)
def test_any_text_gives_documents_that_hold_it(target: Target, model: str, data: str):
    advised = outcome(target=target, model=model, data=data)
    text = write(target, "yaml", advised)
    read = yaml.safe_load(text)
    assert text.isascii()
    names = {"wishbone": ("model", "name"), "unsloth": ("from_pretrained", "model_name")}
    found = read["model_name_or_path"] if target == "trl" else read[names[target][0]][names[target][1]]
    assert found == model
    assert data in str(read) or repr(data)[1:-1] in str(read)
    surrogates = any("\ud800" <= letter <= "\udfff" for letter in model + data)
    if not surrogates:
        assert json.loads(write(target, "json", advised)) == read


@pytest.mark.parametrize("form", ["yaml", "python"])
@pytest.mark.parametrize("target", TARGETS)
def test_each_reason_stands_once_and_none_is_empty(target: Target, form: Format):
    lines = write(target, form, outcome(target=target, symptoms=["collapse", "nan", "length_growth"])).splitlines()
    comments, current = [], ""
    for line in [*lines, ""]:
        text = line.strip()
        if text.startswith("#"):
            current += text[1:]
        elif current:
            comments.append(current)
            current = ""
    assert len(comments) > 8
    assert len(set(comments)) == len(comments)
    assert not any(AS_ASKED in comment for comment in comments)


def test_nothing_but_wishbone_gets_what_only_wishbone_has():
    for target in ("trl", "unsloth"):
        for machine in MACHINES:
            text = write(target, "python", outcome(target=target, **machine))
            assert not any(
                word in text for word in ("wishbone import", "dpop", "token_budget", "load_in_fp8", "rotated_int8")
            )


def test_the_command_line_of_trl_has_no_place_for_a_reference():
    advised = outcome(target="trl", reference="given", reference_model="r")
    for form in ("yaml", "json"):
        with pytest.raises(RequestError, match="cannot load a separate reference model"):
            write("trl", form, advised)
    assert "ref_model=reference" in write("trl", "python", advised)


def test_trl_reads_its_document(tmp_path: Path):
    """With TRL's own parser, which refuses arguments that it does not know."""
    from trl import DatasetMixtureConfig, DPOConfig, ModelConfig, ScriptArguments, TrlParser

    for machine in ({}, {"method": "full", "gpu_memory": 140}, {"symptoms": ["length_growth"], "noisy_labels": True}):
        advised = outcome(target="trl", has_gpu=False, gpu="none", bf16=False, fp8=False, int8=False, **machine)
        path = tmp_path / "dpo.yaml"
        path.write_text(write("trl", "yaml", advised))
        parser = TrlParser((ScriptArguments, DPOConfig, ModelConfig, DatasetMixtureConfig))
        _, training, model, data = parser.parse_args_and_config(["--config", str(path)], fail_with_unknown_args=True)
        assert training.learning_rate == advised.settings["training.learning_rate"]
        assert training.loss_type == advised.settings["preference.loss"]
        assert model.use_peft == (advised.settings["adapter.method"] == "lora")
        assert (data.datasets[0].path, data.datasets[0].data_files) == ("json", "pairs.jsonl")
