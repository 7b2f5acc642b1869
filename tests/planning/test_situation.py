"""Answers are checked all at once, each problem beginning with its flag."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from wishbone.config.rules import rule_book
from wishbone.errors import RequestError
from wishbone.planning.facts import data_format, facts_of
from wishbone.planning.gpus import find_gpu
from wishbone.planning.memory import GIB, MemoryPlan, estimate_memory
from wishbone.planning.model_shape import read_shape
from wishbone.planning.situation import SYMPTOMS, Situation, flag, read_situation

LLAMA_1B = read_shape(
    {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
        "tie_word_embeddings": True,
    }
)  # fmt: skip


def problems(**answers: Any) -> list[str]:
    with pytest.raises(RequestError) as refused:
        read_situation(answers)
    return refused.value.problems


def test_model_and_data_are_all_that_is_needed():
    situation = read_situation({"model": "m", "data": "d"})
    assert (situation.gpu, situation.method, situation.symptoms, situation.target) == ("none", "lora", [], "wishbone")


def test_all_problems_come_at_once():
    found = problems(
        model="m\n", gpus=0, prompt_tokens="abc", symptoms=["colapse"], refrence="x", method="LORA", reference="given"
    )
    assert [problem.partition(":")[0] for problem in found] == [
        "--model", "--gpus", "--method", "--data", "--prompt-tokens", "--symptom", "--refrence", "--reference",
    ]  # fmt: skip
    assert "Did you mean collapse?" in found[5]
    assert "did you mean --reference?" in found[6]
    assert "Did you mean lora?" in found[2]


@pytest.mark.parametrize(
    ("answers", "start"),
    [
        ({"reference": "given"}, "--reference: given needs the other model"),
        ({"reference_model": "x"}, "--reference-model: 'x' is not used with --reference none"),
        ({"longest_tokens": 383}, "--longest-tokens: 383 is shorter than a median pair (128 + 256)"),
        ({"gpu_memory_gib": 24.0}, "--gpu-memory-gib: 24 needs a GPU, but none is named"),
        ({"gpus": 2}, "--gpus: 2 GPUs, but none is named"),
        ({"symptoms": ["nan", "nan"]}, "--symptom: nan given twice"),
    ],
)
def test_answers_that_contradict_each_other(answers: dict[str, Any], start: str):
    (problem,) = problems(model="m", data="d", **answers)
    assert problem.startswith(start)


def test_a_broken_answer_hides_no_other_and_makes_none_up():
    assert len(problems(model="m", data="d", prompt_tokens=0, longest_tokens=100)) == 1
    assert len(problems(model="m", data="d", prompt_tokens=0, reference="given")) == 2


@pytest.mark.parametrize("text", ["", "a\x00", "a\nb", "\ud800", "\u2028"])
def test_text_is_one_line_of_characters(text: str):
    assert problems(model=text, data="d")[0].startswith("--model: ")


def test_flags():
    assert flag("gpu_memory_gib") == "--gpu-memory-gib"
    assert flag("symptoms") == "--symptom"
    assert len(SYMPTOMS) == 8


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.jsonl", "json"), ("A.JSON", "json"), ("x/y.parquet", "parquet"), ("c.csv", "csv"), ("org/name", "hub"),
        ("folder/", "hub"), ("jsonl", "hub"),
    ],
)  # fmt: skip
def test_the_loader_of_a_file(name: str, form: str):
    assert data_format(name) == form


def facts(gpu_memory: float = 24.0, capability: float = 8.9, **answers: Any) -> dict[str, Any]:
    situation = read_situation({"model": "m", "data": "d", "gpu": "RTX 4090", **answers})
    gpu = replace(find_gpu("L4"), capability=capability) if capability else None
    return facts_of(situation, LLAMA_1B, gpu=gpu, gpu_memory=gpu_memory)


def test_facts_are_those_that_the_rules_name():
    assert set(facts()) == set(rule_book().facts)
    assert set(Situation.model_fields) <= set(rule_book().facts)


@pytest.mark.parametrize(
    ("capability", "able"),
    [
        (0.0, set()),
        (7.0, set()),
        (7.5, {"int8"}),
        (8.0, {"bf16", "int8"}),
        (8.9, {"bf16", "fp8", "int8"}),
        (12.0, {"bf16", "fp8", "int8"}),
    ],
)
def test_what_a_gpu_can_do(capability: float, able: set[str]):
    known = facts(capability=capability)
    assert {name for name in ("bf16", "fp8", "int8") if known[name]} == able


def test_memory_facts_are_those_of_the_two_rows():
    """Medians 100 and 300, longest 1200: share 3/4, so 2100 tokens and 1800 scored; 6/7 of a full row are scored."""
    known = facts(prompt_tokens=100, completion_tokens=300, longest_tokens=1200)
    longest = MemoryPlan("nf4", row_tokens=2100, scored_tokens=1800, kept_layers=0, device_memory=24 * GIB)
    full = MemoryPlan("fp8", row_tokens=8192, scored_tokens=8192 * 6 / 7, device_memory=24 * GIB)
    assert known["least_nf4_gib"] == pytest.approx(estimate_memory(LLAMA_1B, longest).total / GIB, abs=0.0051)
    assert known["roomy_fp8_gib"] == pytest.approx(estimate_memory(LLAMA_1B, full).total / GIB, abs=0.0051)
    assert known["model_billion"] == 1.24
    assert known["least_fp8_gib"] == known["least_int8_gib"]
    assert known["least_nf4_gib"] < known["least_fp8_gib"] < known["least_bf16_gib"] < known["least_full_gib"]
    assert known["least_bf16_gib"] == known["least_f16_gib"] < known["least_f32_gib"]


def test_a_reference_of_its_own_takes_its_weights():
    other = facts(reference="given", reference_model="other")
    same = facts(reference="given", reference_model="m")
    weights = 2 * LLAMA_1B.parameters / GIB
    assert other["least_bf16_gib"] - facts()["least_bf16_gib"] == pytest.approx(weights, rel=0.01)
    assert same["least_bf16_gib"] == facts()["least_bf16_gib"]


def test_a_pair_longer_than_a_row_makes_the_row():
    known = facts(prompt_tokens=1000, completion_tokens=1000, longest_tokens=20000)
    assert known["roomy_bf16_gib"] > facts()["roomy_bf16_gib"]
