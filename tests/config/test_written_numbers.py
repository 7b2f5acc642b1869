"""Numbers as people write them; what is written here and elsewhere is the same number, or no number at all."""

from __future__ import annotations

import re

import pytest

from wishbone.config.written_numbers import number_meant


@pytest.mark.parametrize(
    ("text", "whole", "number"),
    [
        ("2k", "2000 or 2048", None),
        ("1 M", "1000000 or 1048576", None),
        ("2k tokens", "2000 or 2048", None),
        ("4,096", "4096", "4.096"),
        ("1,000,000", "1000000", None),
        ("1'000", "1000", "1000"),
        ("12 500", "12500", "12500"),
        ("100 steps", "100", None),
        ("24GB", None, "24"),
        ("7b", None, "7"),
        ("1.5 epochs", None, "1.5"),
        ("1e-5f", None, "1e-5"),
        ("3 %", None, "0.03"),
        ("1/20", None, "0.05"),
        ("1/0", None, None),
        ("10^-5", None, "1e-5"),
        ("5\u00d710\u22126", None, "5e-6"),
        ("5e\u22126", None, "5e-6"),
        ("0,00001", None, "0.00001"),
        ("135M", "135000000 or 141557760", None),
        ("sixteen", None, None),
        ("", None, None),
        ("12\n", None, None),
        ("\u0663k", None, None),
    ],
)
def test_a_number_is_understood(text: str, whole: str | None, number: str | None):
    assert number_meant(text, whole=True) == whole
    assert number_meant(text, whole=False) == number
    for found in (whole, number):
        assert found is None or all(
            re.fullmatch(r"[0-9.e-]+", part) and float(part) >= 0 for part in found.split(" or ")
        )
