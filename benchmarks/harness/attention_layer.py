"""Made-up inputs of one layer of shared-prefix attention, and the launches of its kernels."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

KERNELS = {"attend": ("forward", 2), "query_gradient": ("query_gradient", 3), "key_gradient": ("key_gradient", 4)}
"""Each kernel's field of `Tiles`, and its products."""

REPEATS, WARM_UP = 10, 2

Launch = tuple[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]]
"""Kernel, grid, arguments, and constants."""


class Recorder:
    """A kernel whose launches are noted, and made if `runs`."""

    def __init__(self, kernel: Any, noted: list[Launch], runs: bool) -> None:
        self.kernel, self.noted, self.runs = kernel, noted, runs

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            self.noted.append((self.kernel, grid, arguments, options))
            if self.runs:
                self.kernel[grid](*arguments, **options)

        return launch


class Layer:
    """Made-up queries, keys and values of one layer."""

    def __init__(self, layer: str, lengths: str, pairs: int) -> None:
        """Draw them: `layer` is HEADSxKEY_HEADSxDIMENSION; documents have these lengths, smaller without a GPU."""
        import torch

        from benchmarks.harness.workloads import draw_lengths
        from wishbone.ops.prefix_attention import Document, PrefixLayout

        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if cuda else "cpu")
        dtype = torch.bfloat16 if cuda else torch.float16
        self.heads, self.key_heads, self.size = map(int, layer.split("x"))
        scale = 1.0 if cuda else 0.03
        documents, at = [], 0
        for pair in draw_lengths(lengths, pairs):
            stem, *ends = (max(2, int(n * scale)) for n in (pair.prompt, pair.chosen, pair.rejected))
            documents.append(Document(at, at + stem, (at + stem + ends[0], at + stem + sum(ends))))
            at = documents[-1].end
        documents.append(Document(at, at + -at % 128))
        self.layout = PrefixLayout(tuple(documents))
        g = torch.Generator(self.device).manual_seed(0)
        self.inputs = [
            torch.randn(1, self.layout.length, heads, self.size, device=self.device, generator=g)
            .to(dtype)
            .transpose(1, 2)
            .requires_grad_()
            for heads in (self.heads, self.key_heads, self.key_heads)
        ]
        upstream = torch.randn(1, self.layout.length, self.heads, self.size, device=self.device, generator=g)
        self.upstream = upstream.to(dtype).transpose(1, 2)

    def operations(self) -> int:
        """Useful operations of one product."""
        seen = sum(
            (end - start) * (end - start + 1) // 2 + (end - start) * (stem_end - stem_start)
            for start, end, stem_start, stem_end in self.layout.segments()
        )
        return 2 * seen * self.heads * self.size

    def launches(self, tiles: Any, *, runs: bool) -> tuple[list[Launch], list[Tensor]]:
        """The launches of a forward and backward pass with these tiles, and output and gradients."""
        import torch

        from wishbone.ops.prefix_attention import triton as attention

        noted: list[Launch] = []
        own = {name: getattr(attention, name) for name in (*KERNELS, "tiles_for")}
        others: dict[str, Any] = {name: Recorder(own[name], noted, runs) for name in KERNELS}
        if tiles is not None:
            others["tiles_for"] = lambda *_: tiles
        for name, one in others.items():
            setattr(attention, name, one)
        query, key, value = self.inputs
        try:
            out = attention.prefix_attention_triton(query, key, value, self.layout, scale=self.size**-0.5)
            return noted, [out, *torch.autograd.grad(out, self.inputs, self.upstream)]
        finally:
            for name, one in own.items():
                setattr(attention, name, one)

    def exact(self) -> list[Tensor]:
        """Output and gradients of the reference in float64."""
        import torch

        from wishbone.ops.prefix_attention import prefix_attention

        leaves = [one.detach().double().requires_grad_() for one in self.inputs]
        query, key, value = leaves
        out = prefix_attention(query, key, value, self.layout, scale=self.size**-0.5, backend="reference")
        return [out, *torch.autograd.grad(out, leaves, self.upstream.double())]


def apart(got: list[Tensor], wanted: list[Tensor]) -> list[float]:
    """Relative distances."""
    return [
        float(f"{float((a.detach().double() - b.detach().double()).norm() / b.detach().double().norm()):.1e}")
        for a, b in zip(got, wanted, strict=True)
    ]


def milliseconds(call: Callable[[], Any]) -> float:
    """The median of some calls."""
    import torch

    if not torch.cuda.is_available():
        return 0.0
    for _ in range(WARM_UP):
        call()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(REPEATS)]
    for before, after in events:
        before.record()
        call()
        after.record()
    torch.cuda.synchronize()
    return round(median(float(before.elapsed_time(after)) for before, after in events), 4)
