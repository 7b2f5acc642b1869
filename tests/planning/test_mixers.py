"""Weights counted from config.json, against the models that transformers builds: recurrent layers and experts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from benchmarks.harness.shapes import config_of
from wishbone.ops.chunked_scan import CHUNK
from wishbone.ops.chunked_scan.triton import MOST_STATE_BYTES
from wishbone.planning import mixers
from wishbone.planning.memory import GIB, MemoryPlan, estimate_memory, layer_bytes, trained_parameters
from wishbone.planning.model_shape import ModelShape, read_shape

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
COMMON = {
    "hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 16,
    "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 32000,
}  # fmt: skip
DELTA = {
    "linear_num_key_heads": 8, "linear_num_value_heads": 16, "linear_key_head_dim": 64, "linear_value_head_dim": 64,
}  # fmt: skip
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 512}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_5_text": DELTA,
    "qwen3_next": {**DELTA, **EXPERTS, "shared_expert_intermediate_size": 512},
    "granitemoehybrid": {
        "layer_types": ["mamba"] * 7 + ["attention"], "num_local_experts": 0, "num_experts_per_tok": 0,
        "shared_intermediate_size": 2048, "mamba_n_heads": 32, "mamba_d_head": 64, "mamba_d_state": 64,
    },
    "lfm2": {"layer_types": ["conv"] * 6 + ["full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv"] * 6 + ["full_attention"] * 2, "num_dense_layers": 2, **EXPERTS},
    "jamba": {"num_experts": 4, "attn_layer_period": 4, "attn_layer_offset": 2},
    "falcon_mamba": {"state_size": 16},
    "glm4_moe": {**EXPERTS, "n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "nemotron_h": {
        "num_hidden_layers": None, "layers_block_type": ["mamba", "mlp", "mamba", "moe", "attention", "mlp"], **EXPERTS,
        "mamba_num_heads": 32, "mamba_head_dim": 64, "ssm_state_size": 64, "n_groups": 2, "n_routed_experts": 8,
        "moe_shared_expert_intermediate_size": 512,
    },
    "llama4_text": {
        "intermediate_size_mlp": 4096, "num_local_experts": 8, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2,
    },
    "gpt_oss": {"num_local_experts": 8, "num_experts_per_tok": 2},
}  # fmt: skip


def shape_and_weights(family: str) -> tuple[ModelShape, int]:
    config = CONFIG_MAPPING[family](**{**COMMON, **FAMILIES[family]})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return read_shape(config.to_dict()), model.num_parameters()


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_of_the_model(family: str) -> None:
    shape, weights = shape_and_weights(family)
    assert shape.parameters == pytest.approx(weights, rel=0.01)


def test_adapters_and_activations_follow_the_kind_of_layer() -> None:
    shape, _ = shape_and_weights("granitemoehybrid")
    assert (shape.recurrent, shape.attending) == (7, 1)
    attention = MemoryPlan("bf16", row_tokens=1, rank=8, targets=("q_proj", "k_proj", "v_proj", "o_proj"))
    assert trained_parameters(shape, attention) == 8 * (2 * (1024 + 1024) + 2 * (1024 + 256))  # one layer attends
    kept = 7 * (2 * (2 * 2048 + 2 * 64 + 32) + 2048) + (2 * 1024 + 2 * 256)
    by_mixing = layer_bytes(shape, MemoryPlan("bf16", row_tokens=1, rank=8, targets=())) - 2 * (4 * 1024 + 2 * 2048)
    assert by_mixing == pytest.approx(2 * kept / 8 + 4 * (16 + 2))


def test_a_pattern_of_letters_says_what_each_layer_does() -> None:
    sizes = {**COMMON, **FAMILIES["nemotron_h"], "model_type": "nemotron_h", "num_hidden_layers": 6}
    kinds = sizes.pop("layers_block_type")
    letters = read_shape({**sizes, "hybrid_override_pattern": "M-ME*-"})
    assert letters == read_shape({**sizes, "layers_block_type": kinds})
    assert (letters.recurrent, letters.attending, letters.mlp_alone, letters.expert_layers) == (2, 1, 3, 1)
    assert {one.name: one.count for one in letters.linears if "up_proj" in one.name} == {"up_proj": 1}
    dense = read_shape({**sizes, "hybrid_override_pattern": "M-M-*-"})
    assert (dense.experts, dense.mlp_alone) == (0, 3)
    assert [one.count for one in dense.linears if one.name == "up_proj"] == [3]


def test_memory_of_hybrids_is_what_was_measured() -> None:
    measured = json.loads((RESULTS / "hybrids-beside-trl-h200.json").read_text(encoding="utf-8"))["results"]
    rows = [row for row in measured if row["system"] == "wishbone-recompute" and row["status"] == "ok"]
    for row in rows:
        shape = read_shape(config_of(row["size"]).to_dict())
        plan = MemoryPlan("bf16", row_tokens=8192, scored_tokens=0.84 * 8192, kept_layers=0, device_memory=139.8 * GIB)
        assert estimate_memory(shape, plan).allocated / GIB == pytest.approx(row["peak_gib"], rel=0.05)
    assert {row["size"] for row in rows} >= {"qwen3.5-2b", "granite-4-2b"}


def test_scans_are_counted_as_their_kernels_run() -> None:
    assert (mixers.SCAN_CHUNK, mixers.MOST_STATE_BYTES) == (CHUNK, MOST_STATE_BYTES)
    size = {"mamba_n_heads": 64, "mamba_d_state": 128, "mamba_d_head": 64}
    scan = mixers.scan_of(lambda name, usual=None: size.get(name, usual))
    # writes and states of 64 heads with 64 values, keys of 128, twice each
    assert scan == mixers.Scan(64 * 2 * (64 + 128 + 128), 64 * 128, mixers.MAMBA_HOST)
    assert scan.bytes_of(8192) == 4 * scan.held * 8192
    assert scan.bytes_of(20_000) == 4 * scan.held * 20_000 / 2  # its states fill half a GiB and more
