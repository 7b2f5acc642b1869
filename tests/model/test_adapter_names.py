"""What an adapter's configuration names and the model has not is said, or refused where Wishbone makes the adapter."""

from __future__ import annotations

import re
from typing import Any

import pytest
from peft import LoraConfig
from tiny import tiny_model

from wishbone.errors import RequestError
from wishbone.model.adapter import lora_config
from wishbone.model.adapter_names import absent_names


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target_modules": ["q_proj", "query_key_value"]}, "target_modules names 'query_key_value'"),
        (
            {"target_parameters": ["mlp.up_proj.wieght"]},
            "target_parameters names 'mlp.up_proj.wieght'.* no such parameter",
        ),
        ({"rank_pattern": {"q_prjo": 2}}, "rank_pattern names 'q_prjo'"),
        ({"alpha_pattern": {"layers.7.q_proj": 2}}, "alpha_pattern names 'layers.7.q_proj'"),
        ({"layers_to_transform": [0, 2]}, "layers_to_transform names 2, and the model's layers are 0 to 1"),
        ({"target_modules": r".*\.q_proj", "rank_pattern": {r"layers\.1.*q_proj": 2}}, ""),
        ({"target_parameters": ["mlp.up_proj.weight"], "rank_pattern": {"mlp.up_proj.weight": 2}}, ""),
        ({"target_modules": "all-linear"}, ""),
    ],
)
def test_what_the_model_has_not_is_named(options: dict[str, Any], said: str) -> None:
    model = tiny_model("llama")
    found = absent_names(model, LoraConfig(**{"target_modules": ["q_proj"], **options}))
    assert len(found) == bool(said)
    assert re.search(said, "".join(found))


def test_a_rank_for_no_module_is_refused_where_the_adapter_is_made() -> None:
    with pytest.raises(RequestError, match="rank_pattern names 'q_prjo'"):
        lora_config(tiny_model("llama"), rank=4, rank_pattern={"q_prjo": 2})
