"""`make quick` does not import folders of which it runs no test, and loses none by that."""

from __future__ import annotations

import pytest
from whole_runs import leaves_out_slow


@pytest.mark.parametrize(
    ("marks", "left_out"),
    [
        ("not slow and not long", True),
        ("not long and not slow", True),
        ("not slow", True),
        ("", False),
        ("slow", False),
        ("not long", False),
        ("documents and not long", False),
        ("not slow or gpu", False),
        ("not (not slow)", False),
    ],
)
def test_folders_of_whole_runs_are_left_out_where_no_slow_test_runs(marks: str, left_out: bool) -> None:
    assert leaves_out_slow(marks) is left_out
