"""What Wishbone set out to reach on one H200, beside what was measured.

Speeds are compared with those of other systems in the same results, memory with fixed sizes. A missed target is listed
like the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.harness.results import Results, Row
from benchmarks.rendering.agreement import compare
from benchmarks.rendering.real_pairs_tables import FIGURES, with_all_seeds
from benchmarks.rendering.speed_tables import share_of_ceiling
from benchmarks.rendering.table import Table

Measure = Callable[[Results], float | None]


@dataclass(frozen=True)
class Target:
    """A figure to reach.

    Attributes:
        what: the target in words.
        value: reads the figure from results; None if it was not measured.
        bound: what must be reached.
        hoped: what would be better still, in the same unit; None for nothing.
        at_most: whether smaller is better.
        unit: written after figures.
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
        """Return the target's row."""
        sign = "<=" if self.at_most else ">="
        value = self.value(results)
        hoped = "" if self.hoped is None else f"{sign} {self.shown(self.hoped)}"
        if value is None:
            verdict = "not measured"
        elif not self.reached(value, self.bound):
            verdict = "MISSED"
        else:
            more = self.hoped is not None and self.reached(value, self.hoped)
            verdict = "reached, and what was hoped for" if more else "reached"
        found = "" if value is None else self.shown(value)
        return (self.what, verdict, f"{sign} {self.shown(self.bound)}", hoped, found)

    def shown(self, value: float) -> str:
        """Return a figure with its unit."""
        if self.unit == "%":
            return f"{value:.0%}"
        number = f"{value:,.2f}".rstrip("0").rstrip(".")
        return f"{number}x" if self.unit == "x" else f"{number} {self.unit}".strip()


Systems = tuple[str, ...]

BF16_1B: Systems = ("wishbone-bf16", "wishbone-recorded")
FP8: Systems = ("wishbone-fp8", "wishbone-fp8-recorded")
"""One system without and with recorded passes: a long run chooses what is faster on its host."""


def fastest(results: Results, systems: Systems, case: str, size: str) -> Row | None:
    """Return the row of the fastest of several systems; None if none of them was measured."""
    rows = [row for name in systems if (row := results.find("throughput", size, name, case))]
    return max(rows, key=lambda row: float(row["pairs_per_s"]), default=None)


def speed(ours: str | Systems, theirs: str, case: str = "ultrafeedback:8", size: str = "8b") -> Measure:
    """Return what reads one system's pairs/s, or those of the fastest of several, over another's."""

    def value(results: Results) -> float | None:
        one = fastest(results, (ours,) if isinstance(ours, str) else ours, case, size)
        other = results.find("throughput", size, theirs, case)
        return one["pairs_per_s"] / other["pairs_per_s"] if one and other else None

    return value


def figure(name: str, system: str, case: str = "ultrafeedback:8", size: str = "8b") -> Measure:
    """Return what reads one figure of a row."""

    def value(results: Results) -> float | None:
        row = results.find("throughput", size, system, case)
        return float(row[name]) if row else None

    return value


def of_ceiling(*systems: str) -> Measure:
    """Return what reads useful FLOP/s of the fastest of some systems over the card's best rate."""

    def value(results: Results) -> float | None:
        row = fastest(results, systems, "ultrafeedback:8", "8b")
        return share_of_ceiling(row, results) if row else None

    return value


def peak_over(ours: str, theirs: str) -> Measure:
    """Return what reads one system's peak memory over another's."""

    def value(results: Results) -> float | None:
        one, other = (results.find("throughput", "8b", name, "ultrafeedback:8") for name in (ours, theirs))
        return one["peak_gib"] / other["peak_gib"] if one and other else None

    return value


def longest(system: str, other: str | None = None) -> Measure:
    """Return what reads the tokens of the longest pair in 24 GiB, or their ratio to another system's.

    A search that ran out of time knows a length that fits, not the longest one. That is a lower bound of what a system
    reaches, and no base for a ratio.
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
    """Return the most graphs and kernels that one of Wishbone's rows compiled after its first step."""
    rows = [row for row in results.of("throughput") if row["system"].startswith("wishbone") and row["status"] == "ok"]
    return max((float(sum(row["compiled_later"].values())) for row in rows), default=None)


COMPARED = ("wishbone-bf16", "wishbone-fp8", "wishbone-nf4")
"""Wishbone's systems whose training is compared with TRL's."""


def disagreements(results: Results) -> float | None:
    """Count Wishbone's figures that differ from TRL's bf16 by more than seeds do; None if a system is missing."""
    rows = {row["system"]: row for row in with_all_seeds(results.of("quality")) if row["status"] == "ok"}
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
    """Return one row for each target."""
    columns = ("target", "verdict", "must be", "hoped for", "measured")
    return Table("Targets", columns, [target.row(results) for target in TARGETS])


def elsewhere_table(results: Results, elsewhere: Results) -> Table:
    """Return the ratios between systems of some results beside those of another machine, where both have them."""
    rows = [
        (target.what, target.shown(here), target.shown(there))
        for target in TARGETS
        if target.unit == "x"
        and (here := target.value(results)) is not None
        and (there := target.value(elsewhere)) is not None
    ]
    return Table("Two machines", ("ratio", "in the tables", "another machine"), rows, words=1)
