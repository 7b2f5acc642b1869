"""What Wishbone set out to reach on one H200, against what was measured.

    python -m benchmarks targets RESULTS.json ...

Speeds are compared with those of other systems in the same results, memory with fixed numbers. A target that was missed
is a line like the others.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.agreement import compare
from benchmarks.children import Row
from benchmarks.results import Results
from benchmarks.tables import FIGURES, Table, share_of_ceiling

Measure = Callable[[Results], float | None]


@dataclass(frozen=True)
class Target:
    """A number to reach.

    Attributes:
        what: in words.
        value: reads it from results; None where it was not measured.
        bound: what must be reached.
        hoped: what would be better still, in the same unit, or None.
        at_most: smaller is better.
        unit: put after numbers.
    """

    what: str
    value: Measure
    bound: float
    hoped: float | None = None
    at_most: bool = False
    unit: str = "x"

    def reached(self, value: float, bound: float) -> bool:
        """Whether a value is as good as a bound."""
        return value <= bound if self.at_most else value >= bound

    def row(self, results: Results) -> tuple[str, ...]:
        """Return the target's line."""
        sign = "<=" if self.at_most else ">="
        value = self.value(results)
        hoped = "" if self.hoped is None else f"{sign} {self._shown(self.hoped)}"
        if value is None:
            verdict = "not measured"
        elif not self.reached(value, self.bound):
            verdict = "MISSED"
        else:
            more = self.hoped is not None and self.reached(value, self.hoped)
            verdict = "reached, and what was hoped for" if more else "reached"
        found = "" if value is None else self._shown(value)
        return (self.what, verdict, f"{sign} {self._shown(self.bound)}", hoped, found)

    def _shown(self, value: float) -> str:
        if self.unit == "%":
            return f"{value:.0%}"
        number = f"{value:,.2f}".rstrip("0").rstrip(".")
        return f"{number}x" if self.unit == "x" else f"{number} {self.unit}".strip()


Systems = tuple[str, ...]

BF16_1B: Systems = ("wishbone-bf16", "wishbone-recorded")
FP8: Systems = ("wishbone-fp8", "wishbone-fp8-recorded")
"""One system with passes run and with passes recorded: a long run chooses what is faster on its host."""


def fastest(results: Results, systems: Systems, case: str, size: str) -> Row | None:
    """Return the row of the fastest of several systems, None if none of them was measured."""
    rows = [row for name in systems if (row := results.find("throughput", size, name, case))]
    return max(rows, key=lambda row: float(row["pairs_per_s"]), default=None)


def speed(ours: str | Systems, theirs: str, case: str = "ultrafeedback:8", size: str = "8b") -> Measure:
    """Pairs a second of one system, or of the fastest of several, over those of another."""

    def value(results: Results) -> float | None:
        one = fastest(results, (ours,) if isinstance(ours, str) else ours, case, size)
        other = results.find("throughput", size, theirs, case)
        return one["pairs_per_s"] / other["pairs_per_s"] if one and other else None

    return value


def figure(name: str, system: str, case: str = "ultrafeedback:8", size: str = "8b") -> Measure:
    """A number of a row."""

    def value(results: Results) -> float | None:
        row = results.find("throughput", size, system, case)
        return float(row[name]) if row else None

    return value


def of_ceiling(*systems: str) -> Measure:
    """Useful operations of the fastest of some systems as a share of what the card can do."""

    def value(results: Results) -> float | None:
        row = fastest(results, systems, "ultrafeedback:8", "8b")
        return share_of_ceiling(row, results) if row else None

    return value


def peak_over(ours: str, theirs: str) -> Measure:
    """Peak memory of one system over that of another."""

    def value(results: Results) -> float | None:
        one, other = (results.find("throughput", "8b", name, "ultrafeedback:8") for name in (ours, theirs))
        return one["peak_gib"] / other["peak_gib"] if one and other else None

    return value


def longest(system: str, other: str | None = None) -> Measure:
    """Tokens of the longest pair in 24 GiB, or their number over another system's.

    A search that ran out of time knows a length that fits, and not the longest. That says how much one system reaches
    at least, and nothing about a ratio to it.
    """

    def found(results: Results, name: str) -> Row | None:
        rows = [row for row in results.of("longest") if row["system"] == name and row["case"] == "24 GiB"]
        return rows[-1] if rows and rows[-1].get("tokens") else None

    def value(results: Results) -> float | None:
        own = found(results, system)
        if other is None or own is None:
            return float(own["tokens"]) if own else None
        theirs = found(results, other)
        if theirs is None or theirs.get("stopped_by") == "time":
            return None
        return float(own["tokens"] / theirs["tokens"])

    return value


def later_compilations(results: Results) -> float | None:
    """Graphs and kernels that any of Wishbone's rows compiled after its first step, at most."""
    rows = [row for row in results.of("throughput") if row["system"].startswith("wishbone") and row["status"] == "ok"]
    return max((float(sum(row["compiled_later"].values())) for row in rows), default=None)


COMPARED = ("wishbone-bf16", "wishbone-fp8", "wishbone-nf4")
"""Systems of Wishbone whose training is compared with TRL's."""


def disagreements(results: Results) -> float | None:
    """Figures of our systems that differ from TRL's in bfloat16 by more than seeds do; None if a system is missing."""
    rows = {row["system"]: row for row in results.of("quality") if row["status"] == "ok"}
    if not {"trl-bf16", *COMPARED}.issubset(rows):
        return None
    ours = [rows[name] for name in COMPARED]
    count = 0
    for row in ours:
        for name in FIGURES:
            step = 1 / row["training"]["heldout"] if name == "heldout_accuracy" else 0.0
            found = compare(row[name], rows["trl-bf16"][name], step)
            count += found is not None and not found.agree
    return float(count)


TARGETS = [
    Target("bf16, ultrafeedback: over Unsloth", speed("wishbone-bf16", "unsloth-bf16"), 4.3),
    Target("bf16, ultrafeedback: over TRL with Liger's layers", speed("wishbone-bf16", "trl-liger-bf16"), 5.8),
    Target("bf16, ultrafeedback: of the card's bf16 products (hoped for)", of_ceiling("wishbone-bf16"), 0.78, unit="%"),
    Target("FP8, ultrafeedback: over Unsloth in bf16", speed(FP8, "unsloth-bf16"), 6.5),
    Target("FP8, ultrafeedback: of the card's FP8 products (hoped for)", of_ceiling(*FP8), 0.62, unit="%"),
    Target("NF4, ultrafeedback, memory free: over Unsloth NF4", speed("wishbone-nf4", "unsloth-nf4"), 3.6, 4.0),
    Target("NF4 in Unsloth's memory: over Unsloth NF4", speed("wishbone-nf4-14gib", "unsloth-nf4"), 2.6, 3.0),
    Target(
        "NF4 in Unsloth's memory: its peak over Unsloth's",
        peak_over("wishbone-nf4-14gib", "unsloth-nf4"),
        1.0,
        at_most=True,
    ),
    Target(
        "NF4, smallest memory: peak with pairs of two sequences of 2,048 tokens",
        figure("peak_gib", "wishbone-nf4-small", "full:1"),
        6.0,
        5.4,
        at_most=True,
        unit="GiB",
    ),
    Target(
        "NF4, smallest memory, ultrafeedback, batch 1: over Unsloth NF4",
        speed("wishbone-nf4-small", "unsloth-nf4", "ultrafeedback:1"),
        1.0,
    ),
    Target("bf16, helpsteer: over Unsloth", speed("wishbone-bf16", "unsloth-bf16", "helpsteer:8"), 3.4),
    Target("FP8, helpsteer: over Unsloth in bf16 (hoped for)", speed(FP8, "unsloth-bf16", "helpsteer:8"), 5.0),
    Target("bf16, capybara: over Unsloth", speed("wishbone-bf16", "unsloth-bf16", "capybara:8"), 3.6),
    Target("FP8, capybara: over Unsloth in bf16 (hoped for)", speed(FP8, "unsloth-bf16", "capybara:8"), 5.0),
    Target("1B model, bf16, ultrafeedback: over Unsloth", speed(BF16_1B, "unsloth-bf16", size="1b"), 4.5, 5.5),
    Target("longest pair in 24 GiB, NF4: over Unsloth", longest("wishbone-nf4-small", "unsloth-nf4"), 2.0),
    Target("longest pair in 24 GiB, NF4 (hoped for)", longest("wishbone-nf4-small"), 131_072, unit="tokens"),
    Target("reference stored: over computed, bf16, ultrafeedback", speed("wishbone-stored", "wishbone-bf16"), 1.35),
    Target("compilations after the first step, most of any row", later_compilations, 0, at_most=True, unit=""),
    Target(
        "first step of the 8B model after its weights are loaded, compilers' caches empty",
        figure("first_step_seconds", "wishbone-bf16"),
        40,
        15,
        at_most=True,
        unit="s",
    ),
    Target(
        "quality: of 12 figures, those that differ from TRL's by more than seeds do (by chance alone up to 2)",
        disagreements,
        2,
        0,
        at_most=True,
        unit="",
    ),
]


def targets_table(results: Results) -> Table:
    """One row for each target."""
    columns = ("target", "verdict", "must be", "hoped for", "measured")
    return Table("Targets", columns, [target.row(results) for target in TARGETS])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks targets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="+", help="files of results")
    targets_table(Results.read(*parser.parse_args().results)).print(Console())
