"""Parts of an FP8 step of an 8B model, each computed in several ways, in milliseconds of one layer.

    term       an adapter's term and a base added to a product: tiles of several sizes, in two orders
    swiglu     SwiGLU of both halves to 8 bits: rows read twice, or held in registers
    gradient   of the input of query, key and value: a product for each, or one
    product    an 8-bit product and what is added to it: by the library and one more pass, or in the product's end

The ways of a part run in turn, and the median counts; results are compared with the first way's (a term is added in
place, so that each call has another result). `--choose FILE` prints the best ways of a file of results, as `one-pass
--with` takes them. The GPU replays recorded calls, so that the host does not count. Without a GPU, Triton's interpreter
runs tiny shapes, which shows that it works, no more.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.harness.choices import BY_LIBRARY, best, choose, cut_of, end_of
from benchmarks.harness.results import Results, Row

if TYPE_CHECKING:
    from torch import Tensor

TOKENS, HIDDEN, WIDE, KEYS, RANK = 7682, 4096, 14336, 1024, 16
TINY = (40, 64, 128, 32, 4)
ROUNDS, REPEATS = 7, 8
CUTS = ("32x128x4", "32x128x4a", "32x128x8", "32x128x8a", "64x128x8a", "16x256x8a", "32x64x4a", "64x64x4a")
HELD = (16, 32)
ENDS = ("128x128x64x4x5x2", "128x128x128x4x2x2", "128x256x128x8x3x1")
TINY_CUTS, TINY_HELD, TINY_ENDS = ("32x128x4", "32x64x4a"), (16,), ("32x32x32x4x2x2",)

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

    def rows(self, count: int, columns: int) -> Any:
        """Rows in e4m3."""
        from wishbone.ops.fp8_quantize import quantize_rows

        return quantize_rows(self.normal(count, columns))

    def term(self) -> Iterator[tuple[str, dict[str, Way]]]:
        """Additions to outputs of down, gate, and to the gradient of down's input."""
        from wishbone.ops.low_rank_add.triton import add_low_rank_triton_

        for name, columns, width, based in (
            ("hidden, base", self.hidden, self.hidden, True),
            ("half of two, base", self.wide, 2 * self.wide, True),
            ("wide", self.wide, self.wide, False),
        ):
            y, base = (self.normal(self.tokens, width)[:, :columns] for _ in range(2))
            low, factor = self.normal(self.tokens, self.rank), self.normal(columns, self.rank, size=1e-3).t()

            def add(cut: str, y: Tensor = y, base: Tensor | None = base if based else None, **of: Tensor) -> Tensor:
                return add_low_rank_triton_(y, of["low"], of["factor"], base, cut=cut_of(cut))

            yield (
                name,
                {cut: _with(add, cut, low=low, factor=factor) for cut in (CUTS if self.cuda else TINY_CUTS)},
            )

    def swiglu(self) -> Iterator[tuple[str, dict[str, Way]]]:
        """SwiGLU of both halves, whose gate and up lie side by side."""
        from wishbone.ops.fp8_quantize.triton import swiglu_quantize_both_triton

        halves = [self.normal(self.tokens, 2 * self.wide) for _ in range(2)]
        parts = [part for half in halves for part in half.chunk(2, 1)]

        def work(warps: int) -> Tensor:
            return swiglu_quantize_both_triton(*parts, held_warps=warps)[1].difference.values.view(self.bytes)

        yield "both", {f"held:{warps}": _with(work, warps) for warps in (0, *(HELD if self.cuda else TINY_HELD))}

    @property
    def bytes(self) -> Any:
        import torch

        return torch.uint8

    def gradient(self) -> Iterator[tuple[str, dict[str, Way]]]:
        """Gradient of the input of query, key and value."""
        import torch

        from wishbone.ops.frozen_linear import FP8Weight
        from wishbone.ops.lora_linear.adapter import Adapter
        from wishbone.ops.lora_linear.group import LinearGroup

        sizes = (self.hidden, self.keys, self.keys)
        codes = self.rows(sum(sizes), self.hidden)
        parts = list(zip(codes.values.split(sizes), codes.scale.split(sizes), strict=True))
        grads = [self.normal(self.tokens, size) for size in sizes]
        adapters = [
            Adapter(self.normal(self.rank, self.hidden).float(), self.normal(size, self.rank).float()) for size in sizes
        ]
        found = {}
        for way in ("a product for each", "one product"):
            weights = [
                FP8Weight(*((q.clone(), s.clone()) if way == "a product for each" else (q, s))) for q, s in parts
            ]
            group = LinearGroup(weights, [None] * 3, adapters, torch.bfloat16)
            h = group.down(grads)
            found[way] = _with(group.input_gradient, grads, h)
        yield "query, key, value", found

    def product(self) -> Iterator[tuple[str, dict[str, Way]]]:
        """Products with their ends: outputs of the policy, with a base, and gradients, without."""
        for name, depth, sizes, based in (
            ("query", self.hidden, (self.hidden,), True),
            ("key", self.hidden, (self.keys,), True),
            ("gate and up", self.hidden, (self.wide, self.wide), True),
            ("down", self.wide, (self.hidden,), True),
            ("gradient of out", self.hidden, (self.hidden,), False),
            ("gradient of down", self.hidden, (self.wide,), False),
            ("gradient of query, key, value", self.hidden + 2 * self.keys, (self.hidden,), False),
            ("gradient of gate and up", 2 * self.wide, (self.hidden,), False),
        ):
            yield f"{depth}, {name}", self._ways_of_product(depth, sizes, based)

    def _ways_of_product(self, depth: int, sizes: tuple[int, ...], based: bool) -> dict[str, Way]:
        from wishbone.ops.frozen_linear import FP8Weight
        from wishbone.ops.frozen_linear.fp8_hopper import product_with_term
        from wishbone.ops.low_rank_add import add_low_rank_

        columns = sum(sizes)
        rows, codes = self.rows(self.tokens, depth), self.rows(columns, depth)
        base = self.normal(self.tokens, columns) if based else None
        low = self.normal(self.tokens, len(sizes) * self.rank)
        factor = self.normal(columns, self.rank, size=1e-2)
        weight, scale = FP8Weight(codes.values, codes.scale), codes.scale.view(-1)

        def by_library() -> Tensor:
            y, first = weight.forward(rows), 0
            for i, size in enumerate(sizes):
                own = slice(first, first := first + size)
                part = None if base is None else base[:, own]
                lows = low[:, i * self.rank : (i + 1) * self.rank]
                add_low_rank_(y[:, own], lows, factor[own].t(), base=part, backend="triton")
            return y

        def in_its_end(how: str, *, term: bool = True) -> Tensor:
            added = ((low[:, : self.rank], factor), base) if term else (None, None)
            return product_with_term(rows, codes.values, scale, *added, sizes=sizes, **end_of(how))

        ends = ENDS if self.cuda else TINY_ENDS
        found: dict[str, Way] = {BY_LIBRARY: by_library} | {how: _with(in_its_end, how) for how in ends}
        plain: dict[str, Way] = {"library alone": lambda: weight.forward(rows)}
        return found | plain | {f"{ends[0]} alone": _with(in_its_end, ends[0], term=False)}


def _with(work: Callable[..., Tensor], *arguments: Any, **named: Any) -> Way:
    return lambda: work(*arguments, **named)


def measured(ways: dict[str, Way]) -> Row:
    """Return the milliseconds of each way, or why it failed, and how far its result is from the first way's."""
    from triton.errors import TritonError

    times: dict[str, list[float]] = {}
    row: Row = {"ms": {}, "apart": {}, "failed": {}}
    first: Tensor | None = None
    calls: dict[str, Way] = {}
    for name, way in ways.items():
        try:
            result = way().double()
            calls[name] = _recorded(way)
        except (TritonError, RuntimeError, ValueError) as error:  # a tile that does not fit is a result, too
            row["failed"][name] = f"{type(error).__name__}: {error}"[:160]
            continue
        first = result if first is None else first
        row["apart"][name] = float(f"{float((result - first).norm() / first.norm()):.1e}")
        times[name] = []
        del result
    for _ in range(ROUNDS):
        for name, found in times.items():
            found.append(_seconds(calls[name]))
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
    parts = ("term", "swiglu", "gradient", "product")
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=parts)
    parser.add_argument("--out", type=Path, help="file of results; an existing one is continued")
    parser.add_argument("--commit", help="commit of this code, where git cannot tell")
    parser.add_argument("--choose", type=Path, metavar="FILE", help="print the best choices of a file, and end")
    options = parser.parse_args()
    if options.choose:
        print(best(Results.read(options.choose)))
        return
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
            print(f"{part}, {case}: {row['ms']} {row['failed'] or ''}", flush=True)
            if options.out:
                results.write(options.out)
        if part == "term":
            choose(best(results).partition(",")[0])  # what follows is compared with the best additions


if __name__ == "__main__":
    main()
