"""What is measured: lengths, operations, random models, cases and systems, the search for the longest pair."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest

from benchmarks.commands.longest import next_length
from benchmarks.harness.systems import parse_system
from benchmarks.harness.workloads import MAX_LENGTH, SIZES, WORKLOADS, Case, draw_lengths, long_pair, texts, useful_flop


def test_lengths_follow_their_workload():
    pairs = draw_lengths("ultrafeedback", 4000)
    assert statistics.median(pair.prompt for pair in pairs) == pytest.approx(121, rel=0.06)
    assert statistics.median(pair.chosen for pair in pairs) == pytest.approx(289, rel=0.06)
    assert statistics.median(pair.rejected for pair in pairs) == pytest.approx(289, rel=0.06)
    logs = [math.log(pair.prompt) for pair in pairs if pair.prompt < MAX_LENGTH // 2]
    assert statistics.stdev(logs) == pytest.approx(0.8, rel=0.08)
    assert pairs == draw_lengths("ultrafeedback", 4000)
    assert draw_lengths("ultrafeedback", 10) == pairs[:10]


@pytest.mark.parametrize("workload", WORKLOADS)
def test_no_sequence_is_longer_than_trainers_take(workload: str):
    for pair in draw_lengths(workload, 300):
        assert pair.prompt + max(pair.chosen, pair.rejected) <= MAX_LENGTH
        assert pair.unique == pair.prompt + pair.scored
        assert pair.two_sequences == pair.unique + pair.prompt
    full = draw_lengths("full", 1)[0]
    assert full.prompt + full.chosen == full.prompt + full.rejected == MAX_LENGTH


def test_texts_have_the_lengths_that_operations_are_counted_with():
    from datasets import Dataset

    from benchmarks.harness.random_model import random_tokenizer
    from wishbone.data.tokenize import tokenize_pairs

    pairs = [*draw_lengths("tiny", 5), long_pair(64)]
    rows = tokenize_pairs(Dataset.from_list(texts(pairs, SIZES["tiny"].vocabulary)), random_tokenizer("tiny"))
    found = [(len(row["prompt_ids"]), len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows]
    assert found == [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]
    assert max(max(row["chosen_ids"]) for row in rows) < SIZES["tiny"].vocabulary
    assert long_pair(64).prompt + long_pair(64).chosen == 64


@pytest.mark.parametrize("size", ["tiny", "1b", "8b"])
def test_operations_count_the_weights_of_the_model(size: str):
    import torch
    from transformers import LlamaForCausalLM

    from benchmarks.harness.random_model import config_of

    with torch.device("meta"):
        model = LlamaForCausalLM(config_of(SIZES[size], torch.bfloat16))
    linears = [m for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear)]
    layers = sum(linear.weight.numel() for linear in linears)
    assert SIZES[size].layer_weights == layers
    pair = long_pair(100)
    expected = 6 * (layers * (75 + 25 + 25) + model.lm_head.weight.numel() * (25 + 25))
    assert useful_flop(SIZES[size], [pair]) == expected
    assert useful_flop(SIZES[size], [pair, pair], reference_stored=True) == expected * 2 * 2 // 3


def test_the_written_model_is_the_one_made_on_the_device(tmp_path: Path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from benchmarks.harness.random_model import random_model, write_random_model

    device = torch.device("cpu")
    made = random_model("tiny", torch.float32, device)
    write_random_model("tiny", torch.float32, device, tmp_path / "tiny")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny", dtype=torch.float32)
    for name, weight in made.state_dict().items():
        assert torch.equal(weight, read.state_dict()[name])
    assert AutoTokenizer.from_pretrained(tmp_path / "tiny")("t17 t1999").input_ids == [17, 1999]
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_cases_and_systems_are_read():
    assert Case.parse("helpsteer") == Case("helpsteer", 8, 1)
    assert str(Case.parse("tiny:2x3")) == "tiny:2x3"
    assert Case.parse("tiny:2x3").pairs_a_step == 6
    system = parse_system("wishbone-nf4:token_budget=4096:checkpointing=True:memory_gib=12.5:activations=recompute")
    assert (system.token_budget, system.checkpointing, system.memory_gib) == (4096, True, 12.5)
    assert system.activations == "recompute"
    assert parse_system("unsloth-bf16").checkpointing == "unsloth"
    for wrong in ("wishbone", "wishbone-nf4:tokens=3", "wishbone-nf4:token_budget", "trl-bf16:token_budget=4"):
        with pytest.raises(ValueError, match=r"system"):
            parse_system(wrong)
    for wrong in ("poems:8", "tiny:", "tiny:0", "tiny:4x", "tiny:-1"):
        with pytest.raises(ValueError, match=r"workload|case"):
            Case.parse(wrong)


@pytest.mark.parametrize("true_limit", [3, 700, 4096, 5000, 33_000, 131_072, 10**9])
def test_the_search_ends_at_the_longest_that_fits(true_limit: int):
    lower, upper, tried = 0, None, []
    while (length := next_length(lower, upper, 4096, 131_072)) is not None:
        assert length not in tried
        tried.append(length)
        lower, upper = (length, upper) if length <= true_limit else (lower, length)
    assert len(tried) < 14
    assert lower <= true_limit
    if true_limit >= 131_072:
        assert lower == 131_072
    elif true_limit >= 512:
        assert lower >= true_limit / 1.13 - 256
    if true_limit == 3:
        assert lower == 0
