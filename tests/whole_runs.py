"""Folders of tests that are all slow, which a run without slow tests need not even import."""

from __future__ import annotations

WHOLE_RUNS = {"trainer", "unsloth", "benchmarks", "builder", "judge", "soak"}
"""Folders whose tests train, or run programs of their own: all of them are slow."""


def leaves_out_slow(marks: str) -> bool:
    """Whether an expression of marks, as `-m` takes it, takes no test that is slow."""
    return " or " not in marks and "not slow" in marks.split(" and ")
