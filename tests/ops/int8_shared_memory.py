"""Compile the int8 kernels for a GPU that is not here, and print the shared memory that each of them takes.

python int8_shared_memory.py CAPABILITY SHARED_BYTES KERNELS COLUMNS [COLUMNS ...]

KERNELS is "all", or one kernel of rows: each takes seconds to compile. The products are always compiled.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from typing import Any

import torch
import triton
from attention_shared_memory import AbsentGpu, Compiled

import wishbone.ops.fp8_quantize.norm_triton as norms
import wishbone.ops.fp8_quantize.register_rotation as register_rotation
import wishbone.ops.fp8_quantize.triton as rows
import wishbone.ops.frozen_linear.int8_hopper as hopper
import wishbone.ops.frozen_linear.int8_triton as products
from wishbone.ops.fp8_quantize import INT8_ROWS, QuantizedRows, rotated_int8

KERNELS = ("quantize", "quantize_both", "norm", "norm_both", "swiglu", "swiglu_both")


def calls_of_rows(columns: int, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Calls that launch each kernel of rows."""
    form, x, weight = rotated_int8(columns), torch.ones(2, columns, dtype=dtype), torch.ones(columns, dtype=dtype)
    return {
        "quantize": lambda: rows.quantize_rows_triton(x, None, form),
        "quantize with a scale": lambda: rows.quantize_rows_triton(x, torch.ones(columns), INT8_ROWS),
        "quantize_both": lambda: rows.quantize_both_triton(x, x, form),
        "norm": lambda: norms.rms_norm_quantize_triton(x, weight, 1e-6, form=form),
        "norm_both": lambda: norms.rms_norm_quantize_both_triton(x, x, weight, 1e-6, form=form),
        "norm_both with sums": lambda: norms.sum_rms_norm_quantize_both_triton(x, x, x, x, weight, 1e-6, form=form),
        "swiglu": lambda: rows.swiglu_quantize_triton(x, x, form=form),
        "swiglu_both": lambda: rows.swiglu_quantize_both_triton(x, x, x, x, form=form),
    }


class CompiledRows(Compiled):
    """A kernel of rows; those that it rotates in registers must lie there as `register_rotation.py` says."""

    def __getitem__(self, grid: Any) -> Any:
        def compile_it(*arguments: Any, **options: Any) -> None:
            compiled, wanted = self._kernel.warmup(*arguments, grid=grid, **options), options["IN_REGISTERS"]
            self._taken.append(compiled.metadata.shared)
            written = compiled.asm["ttgir"]
            layouts = dict(
                re.findall(r"^(#\w+) = #ttg\.blocked<\{(sizePerThread = .*?, threadsPerWarp = .*?),", written, re.M)
            )
            found = {
                layouts.get(name) for name in re.findall(r"elementwise_inline_asm .*-> tensor<\w+, (#\w+)>", written)
            }
            if wanted and found != {f"sizePerThread = [{wanted}], threadsPerWarp = [32]"}:
                raise SystemExit(f"{self._kernel.__name__} rotates {wanted} elements of a thread, which has {found}")

        return compile_it


def main() -> None:
    capability, shared_bytes, kernels = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    triton.runtime.driver.set_active(AbsentGpu(capability))
    taken: list[int] = []
    found: dict[str, int] = {}
    for name in KERNELS:
        owner = norms if name.startswith("norm") else rows
        setattr(owner, name, CompiledRows(getattr(owner, name), taken))
    register_rotation.runs_on = lambda device: capability >= 80
    products.product = Compiled(products.product, taken)
    products.finish = Compiled(products.finish, taken)
    hopper.product_of_tiles = Compiled(hopper.product_of_tiles, taken)
    hopper.runs_on = lambda device: capability // 10 == 9
    products.add_low_rank_ = lambda y, low, factor: y
    products.shared_bytes = lambda device: shared_bytes
    products.has_tensor_cores = lambda device: capability >= 80
    dtype = torch.bfloat16 if capability >= 80 else torch.float16
    for columns in map(int, sys.argv[4:]):
        calls = calls_of_rows(columns, dtype)
        for call in calls.values() if kernels == "all" else [calls[kernels]]:
            call()
        found[f"rows of {columns}"] = max(taken)
        taken.clear()
        for tokens in (8, 300):
            a = QuantizedRows(torch.ones(tokens, columns, dtype=torch.int8), torch.ones(tokens, 1), dtype)
            b = torch.ones(256, columns, dtype=torch.int8)
            products.int8_product(a, b, torch.ones(256), torch.ones(256, dtype=dtype), turn=0)
            if capability // 10 == 9 and taken[-1] > (shared_bytes + 1024) // hopper.PROGRAMS - 1024:
                raise SystemExit(f"{hopper.PROGRAMS} programs of {taken[-1]} bytes do not fit on a processor")
            products.int8_product(a, b, None, None, turn=128)
            if capability // 10 == 9:
                term = (
                    torch.ones(tokens, hopper.MOST_RANKS, dtype=dtype),
                    torch.ones(hopper.MOST_RANKS, 256, dtype=dtype),
                )
                for turn in (16, 32, 64, 128):
                    products.int8_product(a, b, None, None, turn=turn, term=term)
                products.int8_product(a, b, torch.ones(256), torch.ones(256, dtype=dtype), turn=0, term=term)
        found[f"products of {columns}"] = max(taken)
        taken.clear()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
