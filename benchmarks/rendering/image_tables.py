"""The table of pairs with images."""

from __future__ import annotations

from benchmarks.harness.results import Results, Row
from benchmarks.rendering.table import Table, failures


def images_table(results: Results) -> Table:
    """Return one row for each system and shape of pairs with images."""
    columns = ("system", "shape", "pairs/s", "peak GiB", "weights GiB", "GPU busy", "tower", "step-1 loss")
    rows = results.of("images")
    return Table("Pairs with images", columns, [_images_row(row) for row in rows], notes=failures(rows))


def _images_row(row: Row) -> tuple[str, ...]:
    start = (row["system"], row["case"])
    if "pairs_per_s" not in row:
        return (*start, "failed", *[""] * 5)
    work = row.get("looked_at") or {}
    busy = work.get("gpu_seconds", 0.0)
    return (
        *start,
        f"{row['pairs_per_s']:.2f}",
        f"{row['peak_gib']:.1f}",
        f"{row['weights_gib']:.1f}" if row["weights_gib"] else "",
        f"{busy * row['pairs_per_s'] / row['pairs_a_step']:.0%}" if busy else "",
        f"{work['module_gpu_seconds'] / busy:.0%}" if busy else "",
        f"{row['losses'][0]:.4f}" if row["losses"] else "",
    )
