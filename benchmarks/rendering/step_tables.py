"""Tables of single steps: the first one with its parts, one pass beside two, and other code beside this."""

from __future__ import annotations

from benchmarks.harness.results import Results, Row
from benchmarks.rendering.table import Table, failures


def first_step_table(results: Results) -> Table:
    """Return one row for each system and state of the caches; the first one of a system is what others equal."""
    columns = (
        "system", "caches", "import s", "model s", "first step s", "trainer s", "kernels ahead + at launch",
        "losses and adapter",
    )  # fmt: skip
    measured = results.of("first_step")
    rows = [_first_step_row(row, measured) for row in measured]
    return Table("First step", columns, rows, notes=failures(measured))


def _first_step_row(row: Row, measured: list[Row]) -> tuple[str, ...]:
    start = (row["system"], f"{row['size']} {row['case']}")
    if row["status"] != "ok":
        return (*start, "failed", *[""] * 5)
    kernels = row["kernels"]
    workload = row["case"].partition(",")[0]
    first = next(
        one
        for one in measured
        if one["status"] == "ok" and one["system"] == row["system"] and one["case"].partition(",")[0] == workload
    )
    same = all(row[name] == first[name] for name in ("losses", "adapter"))
    return (
        *start,
        f"{row['import_seconds']:.1f}",
        f"{row['load_seconds']:.1f}",
        f"{row['first_step_seconds']:.1f}",
        f"{row['trainer_seconds']:.1f}",
        f"{kernels['compiled_ahead']} + {kernels['compiled_at_launch']}",
        "" if row is first else "the same" if same else "DIFFER",
    )


def one_pass_table(results: Results) -> Table:
    """Return one row for each system and way."""
    columns = ("system", "way", "pairs/s", "x two", "pairs/s, best", "x two, best", "host's share", "peak GiB")
    measured = results.of("one_pass")
    rows = [
        (
            row["system"],
            f"{row['size']} {row['case']}: {way}",
            f"{one['pairs_per_s']:.2f}",
            f"{one['factor']:.3f}",
            f"{one['pairs_per_s_best']:.2f}",
            f"{one['factor_best']:.3f}",
            f"{one['host_share']:.2f}",
            f"{one['peak_gib']:.1f}" if "peak_gib" in one else "",
        )
        for row in measured
        for way, one in row.get("ways", {}).items()
    ]
    return Table("One pass beside two", columns, rows, notes=failures(measured))


def before_and_after_table(results: Results) -> Table:
    """Return one row for each system; factors are this code's speed over the other's."""
    columns = (
        "system", "case", "before, pairs/s", "after, pairs/s", "factor", "median", "factor from step 5",
        "first step s, before", "after", "peak GiB, before", "after",
    )  # fmt: skip
    measured = results.of("before_and_after")
    rows = [
        (
            row["system"],
            f"{row['size']} {row['case']}",
            *(f"{row['ways'][way]['pairs_per_s']:.2f}" for way in ("before", "after")),
            f"{row['factor']:.3f}",
            f"{row['median_factor']:.3f}",
            f"{row['factor_from_step_5']:.3f}" if "factor_from_step_5" in row else "",
            *(f"{row['ways'][way]['first_step_seconds']:.1f}" for way in ("before", "after")),
            *(f"{row['ways'][way]['peak_gib']:.1f}" for way in ("before", "after")),
        )
        for row in measured
        if row["status"] == "ok"
    ]
    return Table("Before and after", columns, rows, notes=failures(measured))
