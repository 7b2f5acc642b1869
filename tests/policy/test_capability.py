"""Why a family does not run in one row with a shared prefix, in words that say what its layers do."""

from __future__ import annotations

import pytest
from tiny import tiny_model

from wishbone.policy.capability import choose_form

REASONS = {
    "falcon": "its layers do not run without a mask of their own",
    "llama4_text": "layers of type chunked_attention",
}


@pytest.mark.parametrize("family", REASONS)
def test_reasons_are_words(family: str) -> None:
    capability = choose_form(tiny_model(family))
    assert capability.form == "plain" and capability.reason is not None
    assert REASONS[family] in capability.reason
    assert "prefix_layout" not in capability.reason and "\n" not in capability.reason
