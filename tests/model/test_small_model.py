"""A small model has the layers, classes and flags of the large one, and its parts run fused on the same layers."""

from __future__ import annotations

import pytest
import torch
from transformers import CONFIG_MAPPING

from wishbone.errors import RequestError
from wishbone.model.small_model import small_model
from wishbone.policy.fused_parts import coverage_of_architecture

LARGE = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
    "bos_token_id": 128_000,
    "eos_token_id": 128_001,
}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi3", "cohere", "glm4", "mixtral"])
def test_every_layer_is_there_and_small(family: str) -> None:
    with torch.device("meta"):
        from transformers import AutoModelForCausalLM

        large = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**LARGE, pad_token_id=None))
    state = torch.get_rng_state()
    small = small_model(large.config)
    assert torch.equal(torch.get_rng_state(), state)
    classes = {name: type(module) for name, module in large.named_modules()}
    assert {name: type(module) for name, module in small.named_modules()} == classes
    assert sum(p.numel() for p in small.parameters()) < 1e7 < 1e9 < sum(p.numel() for p in large.parameters())
    dims = {config.get_text_config().to_dict().get("head_dim") or 128 for config in (small.config, large.config)}
    assert len(dims) == 1


def test_windows_and_layers_without_a_rotary_embedding_stay_where_they_are() -> None:
    config = CONFIG_MAPPING["smollm3"](**LARGE, no_rope_layer_interval=2)
    counts = {one.part: (one.fused, one.layers) for one in coverage_of_architecture(config).parts}
    assert counts["rotary embedding"] == (2, 2) and counts["attention"] == (4, 4) and counts["norm"] == (9, 9)


def test_an_architecture_that_does_not_run_small_is_refused_with_what_to_do() -> None:
    config = CONFIG_MAPPING["bamba"](num_hidden_layers=1)
    with pytest.raises(RequestError, match=r"'bamba' does not run with small layers .*summary\.json"):
        small_model(config)
