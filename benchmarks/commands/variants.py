"""Parts of an FP8 step of an 8B model, beside other ways to compute them, in milliseconds of one layer.

    term       an adapter's term added to a product, with a base and without
    swiglu     SwiGLU of policy and reference to 8 bits: rows are read twice, or held in registers
    gradient   of the input of query, key and value: a product for each, or one
    sum        of a block's output and its input in both halves, and the norm after it; and the gradient of that sum

The ways of a part run in turn, and the median counts; results are compared with the first way's. The GPU replays
recorded calls, so that the host does not count. Without a GPU, Triton's interpreter runs tiny shapes, to show that it
works, no more.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.harness.results import Results, Row

if TYPE_CHECKING:
    from torch import Tensor

TOKENS, HIDDEN, WIDE, KEYS, RANK = 7682, 4096, 14336, 1024, 16
TINY = (40, 64, 128, 32, 4)
ROUNDS, REPEATS = 7, 8
APART, TOGETHER = "a product for each", "one product"

Way = Callable[[], "Tensor"]


class Shapes:
    """Made-up tensors of one layer, and the ways to compute its parts."""

    def __init__(self) -> None:
        import torch

        self.cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.cuda else "cpu")
        self.generator = torch.Generator(self.device).manual_seed(0)
        self.tokens, self.hidden, self.wide, self.keys, self.rank = (
            (TOKENS, HIDDEN, WIDE, KEYS, RANK) if self.cuda else TINY
        )

    def normal(self, *shape: int, size: float = 1.0) -> Tensor:
        import torch

        return size * torch.randn(shape, generator=self.generator, device=self.device).bfloat16()

    def term(self) -> Iterator[tuple[str, dict[str, Way]]]:
        """Additions to outputs of down and gate, and to the gradient of down's input."""
        from wishbone.ops.low_rank_add import add_low_rank_

        for name, columns, width, based in (
            ("hidden, base", self.hidden, self.hidden, True),
            ("half of two, base", self.wide, 2 * self.wide, True),
            ("wide", self.wide, self.wide, False),
        ):
            y, base = (self.normal(self.tokens, width)[:, :columns] for _ in range(2))
            low, factor = self.normal(self.tokens, self.rank), self.normal(columns, self.rank, size=1e-3).t()
            own = base if based else None
            yield name, {"added": partial(add_low_rank_, y, low, factor, base=own, backend="triton")}

    def swiglu(self) -> Iterator[tuple[str, dict[str, Way]]]:
        """SwiGLU of policy and reference, whose gate and up lie side by side."""
        import torch

        from wishbone.ops.fp8_quantize import triton

        halves = [self.normal(self.tokens, 2 * self.wide) for _ in range(2)]
        parts = [part for half in halves for part in half.chunk(2, 1)]
        widest = triton.HELD_COLUMNS

        def work(held: int) -> Tensor:
            triton.HELD_COLUMNS = held
            try:
                return triton.swiglu_quantize_both_triton(*parts)[1].difference.values.view(torch.uint8)
            finally:
                triton.HELD_COLUMNS = widest

        yield "both", {"read twice": partial(work, 0), "held": partial(work, widest)}

    def gradient(self) -> Iterator[tuple[str, dict[str, Way]]]:
        """Gradient of the input of query, key and value."""
        import torch

        from wishbone.ops.fp8_quantize import quantize_rows
        from wishbone.ops.frozen_linear import FP8Weight
        from wishbone.ops.lora_linear.adapter import Adapter
        from wishbone.ops.lora_linear.group import LinearGroup

        sizes = (self.hidden, self.keys, self.keys)
        codes = quantize_rows(self.normal(sum(sizes), self.hidden))
        parts = list(zip(codes.values.split(sizes), codes.scale.split(sizes), strict=True))
        grads = [self.normal(self.tokens, size) for size in sizes]
        adapters = [
            Adapter(self.normal(self.rank, self.hidden).float(), self.normal(size, self.rank).float()) for size in sizes
        ]
        found: dict[str, Way] = {}
        for way in (APART, TOGETHER):
            weights = [FP8Weight(q.clone(), s.clone()) if way == APART else FP8Weight(q, s) for q, s in parts]
            group = LinearGroup(weights, [None] * 3, adapters, torch.bfloat16)
            found[way] = partial(group.input_gradient, grads, group.down(grads))
        yield "query, key, value", found

    def sum(self) -> Iterator[tuple[str, dict[str, Way]]]:
        """Sums of both halves and the norm after them with its 8-bit rows; gradients of both that meet in the sum."""
        import torch

        from wishbone.ops.fp8_quantize import (
            rms_norm_backward,
            rms_norm_quantize_both,
            sum_rms_norm_quantize_both,
        )

        x, added, reference, reference_added = (self.normal(self.tokens, self.hidden) for _ in range(4))
        weight = self.normal(self.hidden)

        def apart() -> Tensor:
            with torch.no_grad():
                return rms_norm_quantize_both(x + added, reference + reference_added, weight, 1e-5, backend="triton")[0]

        def fused() -> Tensor:
            return sum_rms_norm_quantize_both(x, added, reference, reference_added, weight, 1e-5, backend="triton")[2]

        yield "forward", {"apart": apart, "in the norm": fused}
        rms = torch.rsqrt(x.float().square().mean(1) + 1e-5)

        def gradients_apart() -> Tensor:
            return rms_norm_backward(added, x, weight, rms, backend="triton") + reference

        def gradients() -> Tensor:
            return rms_norm_backward(added, x, weight, rms, beside=reference, backend="triton")

        yield "gradient", {"apart": gradients_apart, "in the norm": gradients}


def measured(ways: dict[str, Way]) -> Row:
    """Return the milliseconds of each way, and how far its result is from the first way's."""
    row: Row = {"ms": {}, "apart": {}}
    first: Tensor | None = None
    calls: dict[str, Callable[[], Any]] = {}
    for name, way in ways.items():
        result = way().double()
        first = result if first is None else first
        row["apart"][name] = float(f"{float((result - first).norm() / first.norm()):.1e}")
        calls[name] = _recorded(way)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            times[name].append(_seconds(call))
    row["ms"] = {name: round(1e3 * median(found), 4) for name, found in times.items()}
    return row


def _recorded(way: Way) -> Callable[[], Any]:
    """Return a call of `REPEATS` times this way, recorded on a GPU."""
    import torch

    if not torch.cuda.is_available():
        return way
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPEATS):
            way()
    return graph.replay


def _seconds(call: Callable[[], Any]) -> float:
    """Return how long one of the calls takes."""
    import torch

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.synchronize()
    begun = time.perf_counter()
    call()
    if cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - begun) / (REPEATS if cuda else 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks variants", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("term", "swiglu", "gradient", "sum")
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=parts)
    parser.add_argument("--out", type=Path, help="file of results; an existing one is continued")
    parser.add_argument("--commit", help="commit of this code, where git cannot tell")
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
    versions = {name: version(name) for name in ("torch", "triton")}
    results = Results.read(options.out) if options.out and options.out.exists() else Results()
    results.begin_call(options.commit)
    shapes = Shapes()
    for part in options.parts:
        for case, ways in getattr(shapes, part)():
            row = {"kind": "variants", "size": "8b", "system": part, "case": case, "status": "ok"}
            row |= {"tokens": shapes.tokens, "versions": versions, **measured(ways)}
            results.add(row)
            print(f"{part}, {case}: {row['ms']}", flush=True)
            if options.out:
                results.write(options.out)


if __name__ == "__main__":
    main()
