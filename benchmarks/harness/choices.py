"""Other ways to compute parts of a step, by name, so that a benchmark can run a step with them.

    held:16                          SwiGLU of both halves holds whole rows, with so many warps
    cut:32x128x8a                    an adapter's term is added in tiles of 32 x 128 by 8 warps; `a` goes along rows
    end:128x128x64x4x5x2:4096:8192   FP8 products add an adapter's term in their end: tile, warps, stages, programs;
                                     sums up to 4096 with a base, up to 8192 without

What a run does by itself is the default of these functions; a choice changes it for this process.
"""

from __future__ import annotations

import re
from typing import Any

from benchmarks.harness.results import Results, Row

BY_LIBRARY = "library, then one more pass"
"""How `variants` names an FP8 product to which more is added afterwards."""
END = re.compile(r"\d+(x\d+){5}")
"""How it names one with an end: as `end_of` reads it."""


def cut_of(text: str) -> Any:
    """Read the cut of an addition; ValueError for another text."""
    from wishbone.ops.low_rank_add.triton import Cut

    rows, columns, warps = map(int, text.rstrip("a").split("x"))
    return Cut(rows, columns, warps, text.endswith("a"))


def end_of(text: str) -> dict[str, Any]:
    """Read how a product with an end is cut, as arguments of `product_with_term`; ValueError for another text."""
    from wishbone.ops.frozen_linear.tile import Tile

    *tile, programs = map(int, text.split("x"))
    return {"tile": Tile(*tile), "programs": programs}


def choose(text: str) -> None:
    """Make this process compute the named parts, separated by commas, in the named ways; ValueError for others."""
    from wishbone.ops.fp8_quantize.triton import swiglu_quantize_both_triton
    from wishbone.ops.frozen_linear import fp8_hopper
    from wishbone.ops.low_rank_add.triton import add_low_rank_triton_

    for choice in filter(None, text.split(",")):
        name, _, value = choice.partition(":")
        if name == "held":
            _by_default(swiglu_quantize_both_triton, held_warps=int(value))
        elif name == "cut":
            _by_default(add_low_rank_triton_, cut=cut_of(value))
        elif name == "end":
            tile, with_base, without = value.split(":")
            _by_default(fp8_hopper.product_with_term, **end_of(tile))
            fp8_hopper.LONGEST_SUM_WITH_BASE, fp8_hopper.LONGEST_SUM = int(with_base), int(without)
        else:
            raise ValueError(f"{choice!r} is not one of held:..., cut:..., end:...")


def _by_default(function: Any, **values: Any) -> None:
    function.__kwdefaults__ = function.__kwdefaults__ | values


def best(results: Results) -> str:
    """Return the choices that were fastest over a layer, as `choose` reads them."""
    parts: dict[str, list[Row]] = {}
    for row in results.of("variants"):
        parts.setdefault(row["system"], []).append(row)
    choices = [f"cut:{_fastest(parts['term'])}"] if "term" in parts else []
    if "swiglu" in parts:
        choices.append(_fastest(parts["swiglu"]))
    ends = {way for row in parts.get("product", []) for way in row["ms"] if END.fullmatch(way)}
    gains = {how: [_gain(parts["product"], how, based) for based in (True, False)] for how in sorted(ends)}
    if gains:
        how = max(gains, key=lambda one: sum(gain for gain, _ in gains[one]))
        (with_base, longest_with_base), (without, longest) = gains[how]
        if with_base + without > 0:
            choices.append(f"end:{how}:{longest_with_base}:{longest}")
    return ",".join(choices)


def _gain(rows: list[Row], how: str, based: bool) -> tuple[float, int]:
    """Return the most that ends gain in products of sums up to some length, in ms, and that length; 0 for none."""
    gained, best_so_far = 0.0, (0.0, 0)
    own = [row for row in rows if ("gradient" not in row["case"]) == based]
    for depth in sorted({_depth(row) for row in own}):
        times = [row["ms"] for row in own if _depth(row) == depth]
        gained += sum(ms[BY_LIBRARY] - ms.get(how, float("inf")) for ms in times)
        best_so_far = max(best_so_far, (gained, depth))
    return best_so_far


def _depth(row: Row) -> int:
    return int(row["case"].partition(",")[0])


def _fastest(rows: list[Row]) -> str:
    """Return the way with the least time over all rows, of those that all of them have."""
    common: set[str] = set.intersection(*(set(row["ms"]) for row in rows))
    return min(sorted(common), key=lambda way: sum(row["ms"][way] for row in rows))
