"""Rates that others publish for LoRA, counted as the benchmark counts its own, and what makes Wishbone's step faster.

A token of supervised training takes two products with every frozen weight, its forward pass and the gradient of its
inputs: 4 (W + H V) FLOP with W weights in the layers and H x V in the head. Attention is not counted, so the figures
are a little below the published ones.

Between two systems on one machine the ratio of pairs a second falls into three factors:

    prefix     the tokens of two sequences over those of a pair whose prompt is computed once
    recompute  4 products a weight over 3, where the other system recomputes its layers
    the rest   packing, kernels, the host: how many more of the FLOP that it executes a system does in a second
"""

from __future__ import annotations

import json

from benchmarks.harness.results import FOLDER, Results, Row
from benchmarks.harness.workloads import Size
from benchmarks.rendering.table import Table

PUBLISHED = FOLDER / "published-lora.json"
PASSES = 2
RECOMPUTED = 4 / 3
"""Products a weight of a preference step whose layers are recomputed, over those of one that keeps them."""
OWN = (("wishbone-bf16", "bf16"), ("wishbone-fp8-recorded", "fp8"))


def counted_tflops(row: Row) -> float:
    """Return TFLOP/s of a published row, from its tokens a second and the shape of its model."""
    size = Size(**row["shape"])
    return float(2 * PASSES * (size.layer_weights + size.hidden * size.vocabulary) * row["tokens_per_s"] / 1e12)


def published_table(results: Results) -> Table:
    """Return published rates of LoRA beside Wishbone's, in TFLOP/s of one GPU."""
    columns = ("who", "what", "GPU", "weights", "published TFLOP/s", "counted as here")
    rows = [
        (row["who"], f"{row['model']}, LoRA, {row['tokens']}", row["gpu"], row["weights"],
         f"{row['published_tflops']:.0f}", f"{counted_tflops(row):.0f}")
        for row in json.loads(PUBLISHED.read_text(encoding="utf-8"))["results"]
    ]  # fmt: skip
    for system, weights in OWN:
        for case in ("ultrafeedback:8", "helpsteer:8", "capybara:8"):
            own = results.find("throughput", "8b", system, case)
            if own:
                shown = (system, f"Llama-3.1-8B's shape, DPO, {case.partition(':')[0]}", "H200", weights)
                rows.append((*shown, "", f"{own['useful_tflops']:.0f}"))
    return Table("Published rates", columns, rows, words=4)


def factors_table(results: Results) -> Table:
    """Return what the ratio to Unsloth's speed consists of, for cases in bfloat16."""
    columns = ("case", "x Unsloth", "prefix", "recompute", "the rest")
    rows = []
    for case in ("ultrafeedback:8", "helpsteer:8", "capybara:8"):
        own, other = (results.find("throughput", "8b", f"{name}-bf16", case) for name in ("wishbone", "unsloth"))
        if own and other:
            ratio = own["pairs_per_s"] / other["pairs_per_s"]
            prefix = own["tokens_per_pair"]["two_sequences"] / own["tokens_per_pair"]["unique"]
            rest = ratio / prefix / RECOMPUTED
            rows.append((case.partition(":")[0], *(f"{factor:.2f}x" for factor in (ratio, prefix, RECOMPUTED, rest))))
    return Table("What the ratio consists of", columns, rows, words=1)
