"""The card's best rates: matrix products in bfloat16, FP8 and int8, and copies within its memory.

The shapes are those of an 8B model's layers with some thousand tokens. Useful FLOP/s are compared with the best rate of
these shapes in bfloat16 or FP8 (row-wise scales). int8 runs in Wishbone's own kernel, as forward and, rotated, as
backward. The elements are random, because products of zeros run faster.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.harness import jobs
from benchmarks.harness.jobs import Job, run_jobs
from benchmarks.harness.results import Row
from benchmarks.rendering.tables import show

if TYPE_CHECKING:
    from benchmarks.harness.worker import Progress

SHAPES = [(8192, 8192, 8192), (16384, 4096, 14336), (16384, 14336, 4096), (16384, 4096, 4096), (8192, 4096, 14336)]
TINY_SHAPES = [(128, 128, 128)]
COPY_BYTES = 2**31
REPEATS, WARM_UP = 20, 5


def measure(request: dict[str, Any], progress: Progress) -> Row:
    """Measure (in the child); without a GPU, tiny products on the CPU show that it runs, no more."""
    import torch

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    rates = []
    for rows, inner, columns in SHAPES if cuda else TINY_SHAPES:
        progress.phase(f"a product of {rows} x {inner} x {columns}")
        flop = 2 * rows * inner * columns
        left = torch.randn(rows, inner, device=device, dtype=torch.bfloat16)
        right = torch.randn(columns, inner, device=device, dtype=torch.bfloat16)
        rate: Row = {"shape": [rows, inner, columns]}
        rate["bf16_tflops"] = round(flop / _seconds(partial(torch.mm, left, right.t())) / 1e12, 3)
        if cuda and torch.cuda.get_device_capability() >= (8, 9):
            rate["fp8_tflops"] = round(flop / _seconds(_fp8_product(left, right)) / 1e12, 3)
        if cuda and torch.cuda.get_device_capability() >= (7, 5):
            for name, turn in (("int8_tflops", 0), ("int8_rotated_tflops", 128)):
                rate[name] = round(flop / _seconds(_int8_product(left, right, turn)) / 1e12, 3)
        rates.append(rate)
    progress.phase("a copy")
    source = torch.empty(COPY_BYTES if cuda else 2**20, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    seconds = _seconds(lambda: target.copy_(source))
    return {
        "rates": rates,
        "bf16_tflops": max(rate["bf16_tflops"] for rate in rates),
        "fp8_tflops": max((rate["fp8_tflops"] for rate in rates if "fp8_tflops" in rate), default=None),
        "int8_tflops": max((rate["int8_tflops"] for rate in rates if "int8_tflops" in rate), default=None),
        "copy_tb_per_s": round(2 * source.nbytes / seconds / 1e12, 4),
    }


def _fp8_product(left: Any, right: Any) -> Callable[[], Any]:
    """Return a product with one scale for each row of both matrices, as training uses it."""
    import torch

    a, b = left.to(torch.float8_e4m3fn), right.to(torch.float8_e4m3fn)
    scale_a = torch.rand(left.shape[0], 1, device=left.device)
    scale_b = torch.rand(1, right.shape[0], device=left.device)
    return lambda: torch._scaled_mm(
        a, b.t(), scale_a=scale_a, scale_b=scale_b, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def _int8_product(left: Any, right: Any, turn: int) -> Callable[[], Any]:
    """Return Wishbone's product of int8 rows with their scales, rotated in blocks of `turn` columns or not."""
    from wishbone.ops.fp8_quantize import INT8_ROWS, quantize_rows
    from wishbone.ops.frozen_linear.int8_triton import int8_product

    a, b = (quantize_rows(matrix, form=INT8_ROWS) for matrix in (left, right))
    return lambda: int8_product(a, b.values, None if turn else b.scale.view(-1), None, turn=turn)


def _seconds(work: Callable[[], Any]) -> float:
    """Return the seconds of one call: the mean of many, after some that warm up."""
    from benchmarks.harness.clock import now

    for _ in range(WARM_UP):
        work()
    begun = now()
    for _ in range(REPEATS):
        work()
    return (now() - begun) / REPEATS


def job() -> Job:
    """Return the job that measures this card."""
    return Job("ceilings", "", None, "this card", limit_seconds=120, expected_seconds=25)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks ceilings", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    jobs.add_options(parser)
    show(run_jobs([job()], parser.parse_args()), "ceilings")
