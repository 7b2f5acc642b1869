"""The table of each kind of row, and how a command shows it."""

from __future__ import annotations

import sys
from collections.abc import Callable

from rich.console import Console

from benchmarks.harness.results import Results
from benchmarks.rendering.image_tables import images_table
from benchmarks.rendering.real_pairs_tables import (
    adapter_rounding_table,
    cpu_table,
    log_probabilities_table,
    quality_table,
    reference_store_table,
)
from benchmarks.rendering.speed_tables import (
    ceilings_table,
    hybrids_table,
    longest_table,
    mixtures_table,
    plan_table,
    throughput_table,
)
from benchmarks.rendering.step_tables import before_and_after_table, first_step_table, one_pass_table
from benchmarks.rendering.table import Table

WIDTH_OF_FILES = 200

TABLES: dict[str, Callable[[Results], Table]] = {
    "throughput": throughput_table,
    "hybrids": hybrids_table,
    "mixtures": mixtures_table,
    "images": images_table,
    "longest": longest_table,
    "quality": quality_table,
    "ceilings": ceilings_table,
    "plan": plan_table,
    "cpu": cpu_table,
    "adapter_rounding": adapter_rounding_table,
    "log_probabilities": log_probabilities_table,
    "reference_store": reference_store_table,
    "first_step": first_step_table,
    "one_pass": one_pass_table,
    "before_and_after": before_and_after_table,
}


def show(results: Results, *kinds: str) -> None:
    """Print the tables of these kinds that have a row."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH_OF_FILES)
    for kind in kinds:
        if results.of(kind):
            TABLES[kind](results).print(console)
