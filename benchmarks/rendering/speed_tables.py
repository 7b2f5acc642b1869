"""Tables of what is measured on random models: throughput, longest pairs, the card's rates, planned memory."""

from __future__ import annotations

from benchmarks.harness.results import Results, Row
from benchmarks.rendering.table import Table, failures


def throughput_table(results: Results) -> Table:
    """Return one row for each system and case, with failures, grouped by size and case."""
    columns = (
        "system", "case", "pairs/s", "x Unsloth", "TFLOP/s", "of ceiling", "peak GiB", "first step s",
        "new compilations", "step-1 loss", "tokens a pair",
    )  # fmt: skip
    measured = results.of("throughput")
    order = {place: index for index, place in enumerate(dict.fromkeys((row["size"], row["case"]) for row in measured))}
    rows = sorted(measured, key=lambda row: order[row["size"], row["case"]])
    return Table("Throughput", columns, [_throughput_row(row, results) for row in rows], notes=failures(measured))


def _throughput_row(row: Row, results: Results) -> tuple[str, ...]:
    start = (row["system"], f"{row['size']} {row['case']}")
    if row["status"] != "ok":
        return (*start, "failed", *[""] * 8)
    return (
        *start,
        f"{row['pairs_per_s']:.2f}",
        _times(row, baseline(row, results)),
        f"{row['useful_tflops']:.0f}" if row["useful_tflops"] >= 1 else f"{row['useful_tflops']:.3f}",
        _share(share_of_ceiling(row, results)),
        f"{row['peak_gib']:.1f}",
        f"{row['first_step_seconds']:.0f}",
        "{graphs} + {kernels}".format(**row["compiled_later"]),
        f"{row['losses'][0]:.4f}" if row["losses"] else "",
        f"{row['tokens_per_pair']['unique']:.0f} of {row['tokens_per_pair']['two_sequences']:.0f}",
    )


def baseline(row: Row, results: Results) -> Row | None:
    """Return Unsloth's row for the same case, with the same precision of weights, else in bfloat16."""
    weights = next((part for part in ("nf4", "fp8") if f"-{part}" in row["system"]), "bf16")
    for form in (weights, "bf16"):
        found = results.find("throughput", row["size"], f"unsloth-{form}", row["case"])
        if found:
            return found
    return None


def share_of_ceiling(row: Row, results: Results) -> float | None:
    """Return useful FLOP/s over the card's best rate in the precision of the row's matrix products."""
    ceilings = results.find("ceilings", None, "", "this card")
    rate = ceilings and ceilings["fp8_tflops" if "-fp8" in row["system"] else "bf16_tflops"]
    return row["useful_tflops"] / rate if rate else None


def hybrids_table(results: Results) -> Table:
    """Return one row for each shape, workload and system of the hybrids."""
    return _shapes_table("Hybrids", results.of("hybrids"))


def mixtures_table(results: Results) -> Table:
    """Return one row for each shape, adapters and system of the mixtures of experts."""
    return _shapes_table("Mixtures of experts", results.of("mixtures"))


def _shapes_table(title: str, rows: list[Row]) -> Table:
    columns = ("system", "case", "pairs/s", "x TRL", "peak GiB", "start", "first step s", "step-1 loss", "not fast")
    return Table(title, columns, [_shape_row(row, rows) for row in rows], notes=failures(rows))


def _shape_row(row: Row, rows: list[Row]) -> tuple[str, ...]:
    start = (row["system"], f"{row['size']} {row['case']}")
    if row["status"] != "ok":
        return (*start, "failed", *[""] * 6)
    place = (row["size"], row["case"].partition(":")[0])
    theirs = [
        other
        for other in rows
        if other["status"] == "ok"
        and other["system"].startswith("trl")
        and (other["size"], other["case"].partition(":")[0]) == place
    ]
    return (
        *start,
        f"{row['pairs_per_s']:.2f}",
        _times(row, theirs[0] if theirs else None),
        f"{row['peak_gib']:.1f}",
        f"{row['start_peak_gib']:.1f}",
        f"{row['first_step_seconds']:.0f}",
        f"{row['losses'][0]:.4f}" if row["losses"] else "",
        row["not_on_fast_path_because"] or "",
    )


def longest_table(results: Results) -> Table:
    """Return one row for each system and limit."""
    columns = ("system", "limit", "longest pair", "too long", "peak GiB", "seconds a step", "ended by")
    rows = results.of("longest")
    return Table("Longest pair", columns, [_longest_row(row) for row in rows], notes=failures(rows))


def _longest_row(row: Row) -> tuple[str, ...]:
    start = (row["system"], f"{row['size']} {row['case']}")
    if not row.get("tokens"):
        return (*start, "failed" if row["status"] != "ok" else "none", *[""] * 4)
    best = next(attempt for attempt in row["attempts"] if attempt["tokens"] == row["tokens"])
    return (
        *start,
        f"{row['tokens']:,}",
        f"{row['too_long']:,}" if row["too_long"] else "",
        f"{best['peak_gib']:.1f}",
        f"{best['seconds']:.1f}",
        row.get("stopped_by", "failed"),
    )


def ceilings_table(results: Results) -> Table:
    """Return one row for each shape, and one for the copy."""
    rows: list[tuple[str, ...]] = []
    for row in results.of("ceilings"):
        if row["status"] != "ok":
            rows.append(("failed", "", ""))
            continue
        for rate in row["rates"]:
            fp8 = rate.get("fp8_tflops")
            shape = " x ".join(map(str, rate["shape"]))
            rows.append((shape, f"{rate['bf16_tflops']:.4g}", f"{fp8:.4g}" if fp8 else ""))
        rows.append(("copy, read and written", f"{row['copy_tb_per_s']:.3g} TB/s", ""))
    columns = ("rows x inner x columns", "bf16 TFLOP/s", "FP8 TFLOP/s")
    return Table("Ceilings", columns, rows, words=1, notes=failures(results.of("ceilings")))


def plan_table(results: Results) -> Table:
    """Return one row for each precision, budget and treatment of activations: estimated and measured memory."""
    columns = (
        "weights", "activations", "row tokens", "estimated GiB", "measured GiB", "difference", "run estimated",
        "run measured", "difference",
    )  # fmt: skip
    measured = results.of("plan")
    rows = [
        (
            f"{row['size']} {row['system'].removeprefix('wishbone-')} {row['method']}",
            one["activations"],
            f"{one['budget']:,}",
            f"{one['estimate_gib']:.2f}",
            f"{one['peak_gib']:.2f}",
            _signed(one["error"]),
            f"{one['run_estimate_gib']:.2f}",
            f"{one['run_peak_gib']:.2f}",
            _signed(one["run_error"]),
        )
        for row in measured
        for one in row.get("measurements", ())
    ]
    return Table("Memory, estimated and measured", columns, rows, notes=failures(measured))


def _times(row: Row, other: Row | None) -> str:
    return f"{row['pairs_per_s'] / other['pairs_per_s']:.2f}" if other and other is not row else ""


def _signed(share: float | None) -> str:
    return "" if share is None else f"{share:+.1%}"


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"
