"""The memory planner: what was measured, what can be counted by hand, and what must not change unseen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wishbone.engine.execution import SMALL_HEAD_CHUNK
from wishbone.planning.memory import CONTEXT, GIB, MemoryPlan, estimate_memory, trained_parameters
from wishbone.planning.model_shape import LINEAR_EXPERTS, read_shape

ROOT = Path(__file__).parents[2]
VECTORS = json.loads((ROOT / "tests" / "vectors" / "memory-plans.json").read_text(encoding="utf-8"))["vectors"]
ON_H200 = json.loads((ROOT / "benchmarks" / "results" / "plan-h200.json").read_text(encoding="utf-8"))["results"]
ON_CPU = json.loads((ROOT / "benchmarks" / "results" / "plan-cpu.json").read_text(encoding="utf-8"))["measurements"]
H200_MEMORY = 139.8 * GIB
SIZES: dict[str, dict[str, Any]] = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "tie_word_embeddings": False},
}
LLAMA = {"model_type": "llama", "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}
MEASURED = [(run, one) for run in ON_H200 for one in run["measurements"]]
TINY = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256}  # fmt: skip


def test_the_measurements_are_those_that_were_asked_for():
    cases = {(run["size"], run["system"], one["budget"], one["activations"]) for run, one in MEASURED}
    forms = {(size, f"wishbone-{form}") for size in ("1b", "8b") for form in ("bf16", "nf4", "fp8")}
    budgets, treatments = (4096, 8192, 16384), ("keep", "recompute", "offload")
    assert cases == {(*form, budget, how) for form in forms for budget in budgets for how in treatments}


@pytest.mark.parametrize(
    ("run", "one"),
    MEASURED,
    ids=[f"{run['size']} {run['system']} {one['budget']} {one['activations']}" for run, one in MEASURED],
)
def test_peaks_on_an_h200_are_met_within_8_percent(run: dict[str, Any], one: dict[str, Any]):
    common: dict[str, Any] = {
        "weights": run["system"].removeprefix("wishbone-"),
        "row_tokens": one["budget"],
        "kept_layers": None if one["activations"] == "keep" else 0,
        "offload": one["activations"] == "offload",
        "pieces": one["activations"] == "offload",  # as everything was when this was measured
        "head_chunk": SMALL_HEAD_CHUNK if one["activations"] == "offload" else None,
        "device_memory": H200_MEMORY,
        "adapter_bytes": 2 if one["trained_dtype"] == "bfloat16" else 4,
    }
    shape = read_shape(LLAMA | SIZES[run["size"]])
    step = estimate_memory(shape, MemoryPlan(**common, scored_tokens=0.75 * one["budget"]))
    whole = estimate_memory(shape, MemoryPlan(**common))
    assert step.allocated / GIB == pytest.approx(one["peak_gib"], rel=0.08)
    assert whole.allocated / GIB == pytest.approx(one["run_peak_gib"], rel=0.08)


@pytest.mark.parametrize("one", ON_CPU, ids=[f"{one['budget']} {one['activations']}" for one in ON_CPU])
def test_peaks_on_a_processor_are_met_within_15_percent(one: dict[str, Any]):
    shape = read_shape(
        {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
         "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True}
    )  # fmt: skip
    kept = None if one["activations"] == "keep" else 0
    plan = MemoryPlan("f32", row_tokens=one["largest_row"], kept_layers=kept, device="cpu")
    assert estimate_memory(shape, plan).total / GIB == pytest.approx(one["peak_gib"], rel=0.15)


def test_what_lies_still_is_counted_by_hand():
    shape = read_shape({**TINY, "tie_word_embeddings": False})
    items = estimate_memory(shape, MemoryPlan("bf16", row_tokens=100, rank=4)).items
    linear = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128
    adapter = 4 * ((64 + 64) + 2 * (64 + 32) + (64 + 64) + 3 * (64 + 128))
    assert items["weights"] == 2 * (2 * (linear + 2 * 64) + 64)
    assert items["embeddings and head"] == 2 * 2 * 256 * 64
    assert items["adapter"] == items["gradients"] == 4 * 2 * adapter
    assert items["optimizer"] == 2 * items["adapter"]
    assert items["runtime"] == CONTEXT


def test_a_kept_layer_is_counted_by_hand():
    shape = read_shape(TINY)
    one, two = (
        estimate_memory(shape, MemoryPlan("bf16", row_tokens=tokens, rank=4)).items["activations"]
        for tokens in (1000, 2000)
    )
    layer = 2 * (4 * 64 + 2 * 64 + 2 * 32 + 2 * 128 + 7 * 4) + 4 * 4 + 8
    assert (two - one) / 1000 == 2 * layer


def test_named_targets_train_those_alone():
    shape = read_shape(TINY)
    plan = MemoryPlan("bf16", row_tokens=1, rank=8, targets=("q_proj", "down_proj"))
    assert trained_parameters(shape, plan) == 2 * 8 * ((64 + 64) + (128 + 64))
    assert trained_parameters(shape, MemoryPlan("bf16", row_tokens=1, method="full")) == shape.parameters


def test_experts_have_an_adapter_each_where_peft_puts_one() -> None:
    mixture = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    counted = []
    for family in ("qwen3_moe", "gpt_oss"):
        shape = read_shape(TINY | mixture | {"model_type": family})
        every = ("q_proj", "k_proj", "v_proj", "o_proj")
        for targets in ("all-linear", every, (*every, "gate_up_proj", "down_proj")):
            counted.append(trained_parameters(shape, MemoryPlan("bf16", row_tokens=1, rank=8, targets=targets)))
    up, down = 2 * 8 * 5 * (64 + 2 * 24), 2 * 8 * 5 * (24 + 64)
    base = counted[1]
    assert counted == [base + 2 * up + down, base, base + up + down, base, base, base + up + down]


def test_families_whose_experts_count_as_layers_are_pefts() -> None:
    from peft.utils.transformers_weight_conversion import _MODEL_TO_CONVERSION_PATTERN, _MOE_TARGET_MODULE_MAPPING
    from transformers import CONFIG_MAPPING

    mapped = {one for one, kind in _MODEL_TO_CONVERSION_PATTERN.items() if kind in _MOE_TARGET_MODULE_MAPPING}
    assert mapped >= {family for family in LINEAR_EXPERTS if family in CONFIG_MAPPING}  # 5.17 lacks one
    assert len(mapped & LINEAR_EXPERTS) > 20


def test_a_separate_reference_takes_what_the_model_takes():
    shape = read_shape(TINY)
    alone = estimate_memory(shape, MemoryPlan("bf16", row_tokens=10))
    beside = estimate_memory(shape, MemoryPlan("bf16", row_tokens=10, reference="separate"))
    assert beside.items["reference"] == alone.items["weights"] + alone.items["embeddings and head"]
    assert beside.total - alone.total == beside.items["reference"]


def test_less_is_kept_in_the_order_in_which_training_tries():
    shape = read_shape(LLAMA | SIZES["8b"])
    totals = [
        estimate_memory(shape, MemoryPlan("bf16", row_tokens=8192, kept_layers=kept, offload=host, pieces=pieces)).total
        for kept, host, pieces in (
            (None, False, False),
            (16, False, False),
            (0, False, False),
            (0, True, False),
            (0, True, True),
        )
    ]
    assert totals == sorted(totals, reverse=True)
    assert len(set(totals)) == 5


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_vectors_that_javascript_repeats(vector: dict[str, Any]):
    plan = {name: tuple(value) if isinstance(value, list) else value for name, value in vector["plan"].items()}
    estimate = estimate_memory(read_shape(vector["config"]), MemoryPlan(**plan))
    assert estimate.items == vector["items"]
    assert list(estimate.items) == list(vector["items"])


def test_vectors_cover_every_form_and_treatment():
    plans = [vector["plan"] for vector in VECTORS]
    assert len(VECTORS) >= 40
    assert {plan["weights"] for plan in plans} == {"f32", "f16", "bf16", "fp8", "int8", "nf4"}
    assert {plan.get("reference", "none") for plan in plans} == {"none", "separate", "stored"}
    assert {plan.get("device", "cuda") for plan in plans} == {"cuda", "cpu"}
