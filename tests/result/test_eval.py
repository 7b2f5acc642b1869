"""Accuracy and margins are those of the rewards of training, and intervals hold the value as often as they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from learned import Learned
from result.conftest import Command
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from wishbone.result.evaluation import bootstrap, wilson


def log_probability(model: torch.nn.Module, prompt: list[int], whole: list[int]) -> float:
    """One token at a time."""
    total = 0.0
    with torch.no_grad():
        for place in range(len(prompt), len(whole)):
            logits = model(input_ids=torch.tensor([whole[:place]])).logits[0, -1].double()
            total += float(logits.log_softmax(-1)[whole[place]])
    return total


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_rewards_are_those_of_log_ratios(
    kind: str, run: Path, learned: Learned, wishbone: Command, tmp_path: Path, request: pytest.FixtureRequest
):
    if kind == "full":
        request.getfixturevalue("full_run")
    base = AutoModelForCausalLM.from_pretrained(learned.base.name).eval()
    result = wishbone("eval", run, tmp_path / "pairs.jsonl", "--limit", 3, "--json")
    assert result.exit_code == 0, result.stderr
    (found,) = json.loads(result.stdout)
    margins = []
    for line in (tmp_path / "pairs.jsonl").read_text().splitlines()[:3]:
        row = json.loads(line)
        rewards = []
        for side in ("chosen", "rejected"):
            turns = [{"role": "user", "content": row["prompt"]}]
            write = learned.tokenizer.apply_chat_template
            prompt = list(write(turns, add_generation_prompt=True)["input_ids"])
            whole = list(write([*turns, {"role": "assistant", "content": row[side]}])["input_ids"])
            ratio = log_probability(learned.merged, prompt, whole) - log_probability(base, prompt, whole)
            rewards.append(0.1 * ratio)
        margins.append(rewards[0] - rewards[1])
    assert found["pairs"] == 3 and found["ties"] == 0
    assert found["margin"]["value"] == pytest.approx(np.mean(margins), rel=1e-3)
    assert found["accuracy"]["value"] == np.mean(np.array(margins) > 0)
    assert found["margin"]["low"] <= found["margin"]["value"] <= found["margin"]["high"]


@pytest.mark.slow
def test_several_runs_are_rows_of_a_table(
    run: Path, wishbone: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(run.parent)  # a long path is folded
    result = wishbone("eval", run.name, run.name, tmp_path / "pairs.jsonl", "--limit", 2)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count(f"│ {run.name} ") == 2 and "Wilson" in result.stdout and "bootstrap" in result.stdout
    assert wishbone("eval", run, tmp_path / "gone.jsonl").exit_code == 2
    assert wishbone("eval", tmp_path, tmp_path / "pairs.jsonl").exit_code == 2


def test_wilson_is_the_root_of_its_equation():
    """At both ends the observed share is 1.96 standard deviations of that end away."""
    for right, pairs in ((7, 10), (0, 5), (48, 48), (1, 1000)):
        found = wilson(right, pairs)
        for end in (found.low, found.high):
            if 1e-9 < end < 1 - 1e-9:
                assert abs(right / pairs - end) == pytest.approx(1.959964 * np.sqrt(end * (1 - end) / pairs), rel=1e-5)
    assert wilson(0, 5).low == 0 and wilson(5, 5).high == 1


def test_intervals_hold_the_mean_as_often_as_they_say():
    generator = np.random.default_rng(3)
    held = 0
    for _ in range(50):
        found = bootstrap(generator.normal(2.0, 3.0, 40))
        held += found.low <= 2.0 <= found.high
    assert 42 <= held <= 50


@pytest.mark.parametrize("kind", ["adapter", "model"])
@pytest.mark.parametrize("command", ["eval", "chat"])
def test_weights_that_are_not_finite_are_a_wrong_request(
    request: pytest.FixtureRequest, wishbone: Command, kind: str, command: str
) -> None:
    run: Path = request.getfixturevalue("run" if kind == "adapter" else "full_run")
    (file,) = (run / kind).glob("*.safetensors")
    weights = load_file(file)
    name = max(weights)
    weights[name].view(-1)[0] = float("inf")
    save_file(weights, file, metadata={"format": "pt"})
    words = [command, run, *([run.parent / "pairs.jsonl"] if command == "eval" else [])]
    result = wishbone(*words, typed="Hi\n")
    assert result.exit_code == 2
    assert "NaN or infinite" in result.stderr and name.removeprefix("base_model.model.") in result.stderr
