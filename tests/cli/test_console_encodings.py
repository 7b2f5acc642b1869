"""Commands on consoles that are not UTF-8."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SAYS = (
    "from wishbone.cli.console import say, spell_what_is_missing; spell_what_is_missing(); "
    "say('\u0435\u0441\u0442\u044c \u4f60 \u2026 \u2013 \u00e9 \U0001f600'); say('caf\u00e9', error=True)"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", "\\u0435\\u0441\\u0442\\u044c \\u4f60 ... - \\u00e9 \\ud83d\\ude00"),
        ("latin-1", "\\u0435\\u0441\\u0442\\u044c \\u4f60 ... - \u00e9 \\ud83d\\ude00"),
        ("cp1252", "\\u0435\\u0441\\u0442\\u044c \\u4f60 \u2026 \u2013 \u00e9 \\ud83d\\ude00"),
        ("utf-8", "\u0435\u0441\u0442\u044c \u4f60 \u2026 \u2013 \u00e9 \U0001f600"),
    ],
)
def test_letters_that_an_encoding_lacks_are_spelled(encoding: str, expected: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SAYS], capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}, check=True
    )
    assert ended.stdout.decode(encoding).strip() == expected
