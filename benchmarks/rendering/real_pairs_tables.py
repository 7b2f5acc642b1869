"""Tables of what is measured on a real model and real pairs: what is learned, rounding, the CPU, stored references."""

from __future__ import annotations

from statistics import fmean, median
from typing import Any

from benchmarks.harness.results import Results, Row
from benchmarks.rendering.agreement import compare
from benchmarks.rendering.table import Table, failures


def quality_table(results: Results) -> Table:
    """Return means and standard deviations over seeds, and whether a system agrees with the first one."""
    columns = (
        "system", "training", "held-out accuracy", "held-out loss", "held-out margin", "last epoch's loss", "pairs/s",
        "peak GiB",
    )  # fmt: skip
    rows = with_all_seeds(results.of("quality"))
    firsts: dict[tuple[Any, str], Row] = {}
    for row in rows:
        if row["status"] == "ok":
            firsts.setdefault((row["size"], row["case"]), row)
    cells = [_quality_row(row, firsts.get((row["size"], row["case"]))) for row in rows]
    return Table(
        "Quality: mean and standard deviation over seeds, and the difference to the first system", columns, cells
    )


ONE_SEED = ", seed "
"""What the case of a row with one seed says before its number."""

FIGURES = ("heldout_accuracy", "heldout_loss", "heldout_margin", "last_epoch_loss")


def with_all_seeds(rows: list[Row]) -> list[Row]:
    """Return one row a system of those that have one seed each, with the seeds that all systems of a case finished."""
    parts: dict[tuple[Any, str], dict[str, list[Row]]] = {}
    for row in rows:
        if ONE_SEED in row["case"]:
            systems = parts.setdefault((row["size"], row["case"].partition(ONE_SEED)[0]), {})
            systems.setdefault(row["system"], []).append(row)
    found = [row for row in rows if ONE_SEED not in row["case"]]
    for (_, case), systems in parts.items():
        finished = [{row["case"] for row in own if row["status"] == "ok"} for own in systems.values()]
        common = set.intersection(*finished)
        found += [_joined(case, own, common) for own in systems.values()]
    return found


def _joined(case: str, parts: list[Row], cases: set[str]) -> Row:
    """Return one row of those of `cases`; a failed one where there are none."""
    used = sorted((row for row in parts if row["case"] in cases), key=lambda row: row["runs"][0]["seed"])
    if not used:
        return parts[0] | {"case": case, "status": "failed"}
    runs = [run for row in used for run in row["runs"]]
    left_out = "" if len(used) == len(parts) else f", {len(used)} of them finished by all"
    return used[0] | {
        "case": case + left_out,
        "runs": runs,
        "pairs_per_s": fmean(run["pairs_per_s"] for run in runs),
        "peak_gib": max(run["peak_gib"] for run in runs),
        **{name: [run[name] for run in runs] for name in FIGURES},
    }


def _quality_row(row: Row, first: Row | None) -> tuple[str, ...]:
    start = (row["system"], row["case"])
    if row["status"] != "ok" or first is None:
        return (*start, "failed", *[""] * 5)
    figures = [_figure(row, first, name) for name in FIGURES]
    return (*start, *figures, f"{row['pairs_per_s']:.1f}", f"{row['peak_gib']:.2f}")


def _figure(row: Row, first: Row, name: str) -> str:
    values = row[name]
    mean = fmean(values)
    spread = (sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)) ** 0.5
    text = f"{mean:.4f} ± {spread:.4f}"
    if row is first:
        return text
    granularity = 1 / row["training"]["heldout"] if name == "heldout_accuracy" else 0.0
    found = compare(values, first[name], granularity)
    if found is None:
        return f"{text} ({mean - fmean(first[name]):+.4f})"
    return f"{text} ({found.difference:+.4f}, {'agrees' if found.agree else 'DIFFERS'} within {found.allowed:.4f})"


def cpu_table(results: Results) -> Table:
    """Return one row for each system: medians over its runs, beside the first system."""
    columns = (
        "system", "TRL", "pairs/s (median)", "of each run", "x first", "processor s a pair", "peak GiB", "of first",
        "largest loss difference", "others' share of the cores",
    )  # fmt: skip
    measured = results.of("cpu")
    systems: dict[str, list[Row]] = {}
    for row in measured:
        if row["status"] == "ok":
            systems.setdefault(row["system"], []).append(row)
    first = next(iter(systems.values()), [])
    cells = [_cpu_row(system, runs, first) for system, runs in systems.items()]
    return Table("On a CPU", columns, cells, notes=failures(measured))


def _cpu_row(system: str, runs: list[Row], first: list[Row]) -> tuple[str, ...]:
    speed, peak = _median(runs, "pairs_per_s"), _median(runs, "peak_gib")
    work = f"{_median(runs, 'processor_seconds_per_pair'):.2f}"
    cells = (
        system,
        runs[0]["versions"]["trl"],
        f"{speed:.4f}",
        ", ".join(f"{row['pairs_per_s']:.4f}" for row in runs),
    )
    others = [row["others"] for row in runs if row["others"] is not None]
    load = f"{max(others):.1%}" if others else ""
    if runs is first:
        return (*cells, "", work, f"{peak:.2f}", "", "", load)
    gap = max(abs(a - b) for row in runs for a, b in zip(row["losses"], first[0]["losses"], strict=True))
    ratio, share = speed / _median(first, "pairs_per_s"), peak / _median(first, "peak_gib")
    return (*cells, f"{ratio:.2f}", work, f"{peak:.2f}", f"{share:.2f}", f"{gap:.1e}", load)


def _median(runs: list[Row], name: str) -> float:
    return median(float(row[name]) for row in runs)


def adapter_rounding_table(results: Results) -> Table:
    """Return margin and loss of one adapter in each system."""
    rows = results.of("adapter_rounding")
    cells = [(r["system"], f"{r['margin']:.3f}", f"{r['loss']:.3f}") for r in rows if r["status"] == "ok"]
    return Table("One adapter", ("system", "reward margin", "loss"), cells, words=1, notes=failures(rows))


def log_probabilities_table(results: Results) -> Table:
    """Return how far each system's log-probabilities are from the first one's, in nats."""
    columns = ("system", "mean error a token", "of a completion", "of a margin", "perplexity", "greedy token agrees")
    rows = results.of("log_probabilities")
    cells = [
        (
            row["system"],
            f"{row['token_mean_absolute']:.3f}",
            f"{row['completion_mean_absolute']:.2f}",
            f"{row['margin_mean_absolute']:.2f}",
            f"x {row['perplexity_ratio']:.3f}",
            f"{row['greedy_agreement']:.1%}",
        )
        for row in rows
        if row["status"] == "ok"
    ]
    return Table("Log-probabilities, errors in nats", columns, cells, words=1, notes=failures(rows))


def reference_store_table(results: Results) -> Table:
    """Return one row for each run of the sweep."""
    columns = ("run", "pairs/s", "references reused", "references computed", "last loss")
    rows = results.of("reference_store")
    cells = [
        (
            row["case"],
            f"{row['pairs_per_s']:.4f}",
            str(row["reference"].get("reused", "")),
            str(row["reference"].get("computed", "")),
            f"{row['losses'][-1]:.6f}",
        )
        for row in rows
        if row["status"] == "ok"
    ]
    return Table("A sweep of betas", columns, cells, words=1, notes=failures(rows))
