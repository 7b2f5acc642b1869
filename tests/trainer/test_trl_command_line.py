"""Wishbone's arguments on command lines that TRL's and transformers' parsers read, and TRL's `dpo` script patched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_tokenizer
from transformers import HfArgumentParser
from trl import TrlParser
from trl.scripts import dpo

from trainer.preference_runs import chat_pairs, model_for
from wishbone import DPOConfig, PatchDPOTrainer

REQUIRED = ["--output_dir", "out", "--use_cpu", "True", "--bf16", "False"]


@pytest.mark.parametrize("parser", [TrlParser, HfArgumentParser])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {"token_budget": "auto", "activations": "auto", "reference_store": "auto", "max_prompt_length": None}),
        (["--token_budget", "512"], {"token_budget": 512}),
        (["--token-budget", "auto"], {"token_budget": "auto"}),
        (["--activations", "offload", "--loss_type", "simpo"], {"activations": "offload", "loss_type": ["simpo"]}),
        (["--max_prompt_length", "12", "--cpo_alpha", "0.5"], {"max_prompt_length": 12, "cpo_alpha": 0.5}),
    ],
)
def test_options_are_read_from_words(parser: type[HfArgumentParser], words: list[str], expected: dict[str, Any]):
    (config,) = parser(DPOConfig).parse_args_into_dataclasses(REQUIRED + words)
    assert {name: getattr(config, name) for name in expected} == expected


def test_what_trl_dpo_runs_trains_with_wishbone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "model")
    model_for(tokenizer).save_pretrained(tmp_path / "model")
    chat_pairs(16).to_json(tmp_path / "pairs" / "train.jsonl")
    words = ["--model_name_or_path", str(tmp_path / "model"), "--dataset_name", str(tmp_path / "pairs")]
    words += ["--output_dir", str(tmp_path / "out"), "--use_cpu", "True", "--bf16", "False", "--report_to", "none"]
    words += ["--max_steps", "2", "--logging_steps", "1", "--use_peft", "True", "--lora_target_modules", "all-linear"]
    words += ["--token_budget", "100", "--loss_type", "simpo"]  # TRL itself knows neither
    with PatchDPOTrainer():
        dpo.main(*dpo.make_parser().parse_args_and_config(words))
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    (state,) = (tmp_path / "out").glob("checkpoint-2/trainer_state.json")
    steps = [entry for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2] and all(entry["grad_norm"] > 0 for entry in steps)
