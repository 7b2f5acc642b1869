"""Each layer that attends calls the attention function equally often, with the window of its type."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from wishbone.policy.attention_hook import AttentionCall
from wishbone.policy.layer_types import unknown_layer_types, why_not_all_attend

CONFIG = SimpleNamespace(layer_types=["sliding_attention", "conv", "full_attention"], sliding_window=8)


@pytest.mark.parametrize(
    ("windows", "why"),
    [
        ([8, None], None),
        ([8, 8, None, None], None),
        ([], "cannot be exchanged"),
        ([8], "only 1 of its 2 layers"),
        ([8, None, None], "its 2 layers attend 3 times"),
        ([None, 8], "windows of its layers"),
        ([8, None, 8, None], "windows of its layers"),
    ],
)
def test_calls_are_those_of_the_layers_that_attend(windows: list[int | None], why: str | None) -> None:
    found = why_not_all_attend([AttentionCall(window) for window in windows], CONFIG, 2)
    assert found == why or (found is not None and why is not None and why in found)


def test_types_beside_a_recurrence_are_known_only_where_it_runs_over_rows() -> None:
    config = SimpleNamespace(layer_types=["moe", "conv", "full_attention", "linear_sparse"])
    assert unknown_layer_types(config, recurrent=True) == ["linear_sparse"]
    assert unknown_layer_types(config, recurrent=False) == ["conv", "linear_sparse", "moe"]
    assert unknown_layer_types(SimpleNamespace(), recurrent=False) == []
