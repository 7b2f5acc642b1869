"""What counts as another run, from the recorded facts alone."""

from __future__ import annotations

from typing import Any

import pytest

from wishbone.trainer.fingerprint import changes

START, OTHER = {"weights": "SHA-256 aa"}, {"weights": "SHA-256 bb"}


@pytest.mark.parametrize(
    ("before", "now", "differ"),
    [
        ({}, {}, False),
        ({}, START, False),
        (START, {}, False),
        ({}, OTHER, True),
        (OTHER, {}, True),
        (OTHER, START, True),
        (OTHER, OTHER, False),
    ],
)
def test_a_run_keeps_its_reference_however_it_is_named(
    before: dict[str, str], now: dict[str, str], differ: bool
) -> None:
    """Without a model of its own, the reference is the model that training starts from."""
    lines = changes({"model": START, "reference": before}, {"model": START, "reference": now})
    assert [line.startswith("reference: weights was") for line in lines] == [True] * differ


def test_a_reference_of_which_nothing_was_recorded_is_not_compared() -> None:
    assert changes({}, {"model": START, "reference": OTHER}) == []


@pytest.mark.parametrize(("was", "is_now"), [({"peft_type": "LORA", "r": 4}, {}), ({}, {"peft_type": "LORA", "r": 4})])
def test_an_adapter_comes_or_goes_only_in_another_run(was: dict[str, Any], is_now: dict[str, Any]) -> None:
    (line,) = changes({"adapter": was}, {"adapter": is_now})
    assert line == ("adapter was LORA and is none" if was else "adapter was none and is LORA")
    assert changes({"adapter": was}, {"adapter": was}) == []
    assert changes({}, {"adapter": is_now}) == []
