"""One recurrent layer's scan over a row of pairs: kernels beside PyTorch, and both beside float64.

The row holds 8 pairs of Capybara's lengths. Times are of the forward pass alone and with the backward pass; errors are
relative, in the 2-norm, of the output and of each input's gradient over 2 pairs. Nothing but the op runs.

With `--launches`, each kernel is timed alone as well: as the op launches it, in a row that shares prompts and in one
that holds each prompt twice, and then with other numbers of warps and pipeline stages.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

PAIRS, CHECKED = 8, 2
REPEATS, WARM_UP = 5, 2
WARPS, STAGES, COMPILERS = (4, 8), (1, 2, 3), 12
SHAPES = {
    "delta-rule": {"key_heads": 16, "heads": 16, "key": 128, "value": 128},
    "state-space": {"key_heads": 1, "heads": 64, "key": 128, "value": 64},
}
"""Of a layer of Qwen3.5's 2B and of Granite 4's hybrid."""
TINY = {"key_heads": 1, "heads": 2, "key": 16, "value": 16}


def layout_of(count: int, scale: float, *, shared: bool = True) -> Any:
    """The layout of a row with `count` pairs; if not `shared`, with each prompt twice."""
    from benchmarks.harness.workloads import draw_lengths
    from wishbone.ops.prefix_attention import Document, PrefixLayout

    documents, at = [], 0
    for pair in draw_lengths("capybara", count):
        stem, *ends = (max(2, int(n * scale)) for n in (pair.prompt, pair.chosen, pair.rejected))
        if shared:
            documents.append(Document(at, at + stem, (at + stem + ends[0], at + stem + sum(ends))))
            at += stem + sum(ends)
        for end in () if shared else ends:
            documents.append(Document(at, at, (at + stem + end,)))
            at += stem + end
    return PrefixLayout(tuple(documents))


def inputs_of(case: str, shape: dict[str, int], tokens: int, dtype: Any, device: str) -> list[Any]:
    """Random inputs of the op, in its order of arguments."""
    import torch
    import torch.nn.functional as F

    g = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Any:
        return torch.randn(1, tokens, *size, device=device, generator=g)

    keys = [normal(shape["key_heads"], shape["key"]).to(dtype) for _ in range(2)]
    value = normal(shape["heads"], shape["value"]).to(dtype)
    if case == "delta-rule":
        return [*keys, value, -F.softplus(normal(shape["heads"])), normal(shape["heads"]).sigmoid()]
    rate, skip = (torch.rand(shape["heads"], device=device, generator=g) for _ in range(2))
    return [value, F.softplus(normal(shape["heads"]) - 3), -8 * rate, *keys, skip]


def op_of(case: str, how: str) -> Callable[[list[Any], Any], Any]:
    """The op by kernels, or in PyTorch."""
    import functools

    from wishbone.ops.gated_delta_rule import chunked as delta_rule
    from wishbone.ops.state_space_scan import chunked as state_space

    module: Any = delta_rule if case == "delta-rule" else state_space
    op = module._by_kernels if how == "kernels" else module._in_pytorch
    return functools.partial(op, unit=True) if case == "delta-rule" else op


def errors(case: str, how: str, shape: dict[str, int], dtype: Any, device: str, scale: float) -> list[float]:
    """Relative errors of the output and of all gradients against float64."""
    import torch

    layout = layout_of(CHECKED, scale)
    given = inputs_of(case, shape, layout.length, dtype, device)
    results = []
    for form, inputs in (("pytorch", [one.double() for one in given]), (how, given)):
        leaves = [one.detach().clone().requires_grad_() for one in inputs]
        out = op_of(case, form)(leaves, layout)
        upstream = torch.arange(out.numel(), device=device).mul(0.7).cos().to(dtype).view(out.shape)
        results.append([out, *torch.autograd.grad(out, leaves, upstream.to(out.dtype))])
    return [
        float(f"{float((got.detach().double() - exact.detach()).norm() / exact.detach().norm()):.1e}")
        for exact, got in zip(*results, strict=True)
    ]


def milliseconds(work: Callable[[], Any], device: str) -> float:
    """The mean of some calls, after some that warm up."""
    import torch

    from benchmarks.harness.clock import now

    for _ in range(WARM_UP):
        work()
    begun = now()
    for _ in range(REPEATS):
        work()
    if device == "cuda":
        torch.cuda.synchronize()
    return round(1e3 * (now() - begun) / REPEATS, 3)


def milliseconds_of_launches(case: str) -> list[dict[str, Any]]:
    """Times of each kernel alone; empty without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return []
    rows = []
    for shared in (True, False):
        launches = launches_of(case, SHAPES[case], layout_of(PAIRS, 1.0, shared=shared), "cuda")
        choices = list(itertools.product(WARPS, STAGES)) if shared else []
        with ThreadPoolExecutor(COMPILERS) as pool:
            list(pool.map(lambda of: _compiled(*of), itertools.product(launches, choices)))
        for kernel, grid, arguments, sizes in launches:
            row = {"case": case, "kernel": kernel.__name__, "grid": grid, "shared": shared}
            row |= {name: sizes[name] for name in ("STEMS", "num_stages") if name in sizes}
            row["ms"] = _milliseconds_of(kernel, grid, arguments, sizes)
            row["ms_with"] = {
                f"{warps} warps, {stages} stages": _milliseconds_of(
                    kernel, grid, arguments, sizes | {"num_warps": warps, "num_stages": stages}
                )
                for warps, stages in choices
            }
            rows.append(row)
    return rows


def launches_of(
    case: str, shape: dict[str, int], layout: Any, device: str
) -> list[tuple[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]]]:
    """The launches of one forward and backward pass: kernel, grid, arguments, and constants; each kind once."""
    import torch

    scan: Any = importlib.import_module("wishbone.ops.chunked_scan.triton")
    noted: dict[Any, Any] = {}
    run = scan.launch

    def note(kernel: Any, grid: Any, device: Any, *arguments: Any, **sizes: Any) -> None:
        noted[kernel.__name__, sizes.get("STEMS")] = kernel, grid, arguments, sizes
        run(kernel, grid, device, *arguments, **sizes)

    leaves = [one.requires_grad_() for one in inputs_of(case, shape, layout.length, torch.bfloat16, device)]
    scan.launch = note
    try:
        out = op_of(case, "kernels")(leaves, layout)
        torch.autograd.grad(out, leaves, out)
    finally:
        scan.launch = run
    return list(noted.values())


def _compiled(launch: tuple[Any, Any, Any, dict[str, Any]], choice: tuple[int, int]) -> None:
    """Compile a kernel with other warps and stages; what cannot be is left to its own launch."""
    from triton.runtime.errors import OutOfResources

    kernel, grid, arguments, sizes = launch
    try:
        kernel.warmup(*arguments, grid=grid, **sizes | {"num_warps": choice[0], "num_stages": choice[1]})
    except OutOfResources:
        return


def _milliseconds_of(kernel: Any, grid: Any, arguments: Any, sizes: dict[str, Any]) -> float | None:
    """The median of some launches; None for a kernel that takes too much of the GPU."""
    import torch
    from triton.runtime.errors import OutOfResources

    from wishbone.ops.staged_launch import MOST_STAGES

    for own in ({"num_stages": stages} | sizes for stages in range(MOST_STAGES, 0, -1)):
        try:
            kernel[grid](*arguments, **own)
        except OutOfResources:
            continue
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(REPEATS)]
        for before, after in events:
            before.record()
            kernel[grid](*arguments, **own)
            after.record()
        torch.cuda.synchronize()
        times: list[float] = sorted(before.elapsed_time(after) for before, after in events)
        return round(times[REPEATS // 2], 4)
    return None


def measure(case: str, how: str) -> dict[str, Any]:
    """One row of figures; without a GPU a tiny layer in PyTorch shows that it runs, no more."""
    import torch

    cuda = torch.cuda.is_available()
    device, scale, shape = ("cuda", 1.0, SHAPES[case]) if cuda else ("cpu", 0.03, TINY)
    layout = layout_of(PAIRS, scale)
    leaves = [one.requires_grad_() for one in inputs_of(case, shape, layout.length, torch.bfloat16, device)]
    op = op_of(case, how)

    def forward() -> None:
        with torch.no_grad():
            op(leaves, layout)

    def both() -> None:
        out = op(leaves, layout)
        torch.autograd.grad(out, leaves, out)

    row: dict[str, Any] = {"case": case, "system": how, "row_tokens": layout.length}
    row["errors"] = {
        str(dtype)[6:]: errors(case, how, shape, dtype, device, scale) for dtype in (torch.bfloat16, torch.float32)
    }
    row["ms"] = [milliseconds(forward, device), milliseconds(both, device)]
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        both()
        row["peak_gib"] = round((torch.cuda.max_memory_allocated() - held) / 2**30, 2)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks scans", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--systems", nargs="+", default=["kernels", "pytorch"], choices=["kernels", "pytorch"])
    parser.add_argument("--launches", action="store_true", help="time each kernel alone, and nothing else")
    chosen = parser.parse_args()
    for case in chosen.cases:
        rows = milliseconds_of_launches(case) if chosen.launches else (measure(case, how) for how in chosen.systems)
        for row in rows:
            print(json.dumps(row), flush=True)
