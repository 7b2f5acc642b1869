"""Models that hold NaN or infinity are refused, with where and what to do."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model

from wishbone.errors import RequestError
from wishbone.trainer.non_finite import refuse_non_finite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_number_that_float16_cannot_hold_is_one_more_reason(dtype: torch.dtype) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_parameter("model.layers.0.mlp.up_proj.weight")[0, 0] = 1e5
    model = model.to(dtype)
    if dtype != torch.float16:
        refuse_non_finite(model)
        return
    with pytest.raises(RequestError, match=r"\(1: model.layers.0.mlp.up_proj.weight\).*which float16 cannot"):
        refuse_non_finite(model)


def test_a_damaged_file_of_another_dtype_says_nothing_of_float16() -> None:
    model = tiny_model("llama", torch.bfloat16)
    with torch.no_grad():
        model.get_parameter("lm_head.weight")[0, 0] = float("nan")
    with pytest.raises(RequestError, match=r"the reference model has .*lm_head.weight.*load another copy$"):
        refuse_non_finite(model, "the reference model")
