"""Compile the kernels of scans for a GPU that is not here, and print the shared memory that each takes with one stage.

python scan_shared_memory.py CAPABILITY
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import triton
from attention_shared_memory import AbsentGpu

import wishbone.ops.chunked_scan.triton as scan
from wishbone.ops.prefix_attention.layout import Document, PrefixLayout

LAYOUT = PrefixLayout((Document(0, 100, (300, 512)),))
SHAPES = ((True, 128, 128, 2, 2), (False, 128, 64, 1, 4))
"""Of Qwen3.5's delta rule and of Granite 4's Mamba-2: delta, elements of a key and of a value, key heads, heads."""


def main() -> None:
    triton.runtime.driver.set_active(AbsentGpu(int(sys.argv[1])))
    taken: dict[str, int] = {}

    def compile_only(kernel: Any, grid: Any, _device: torch.device, *arguments: Any, **sizes: Any) -> None:
        shared = kernel.warmup(*arguments, grid=grid, **sizes | {"num_stages": 1}).metadata.shared
        taken[kernel.__name__] = max(taken.get(kernel.__name__, 0), shared)

    scan.launch = compile_only
    for delta, key, value, key_heads, heads in SHAPES:
        shapes = (key_heads, key), (key_heads, key), (heads, value), (heads,), (heads,)
        leaves = [torch.randn(LAYOUT.length, *shape).bfloat16().requires_grad_() for shape in shapes]
        out = scan.chunked_scan(*leaves, LAYOUT, scan.Rule(1.0, delta, delta), None if delta else torch.ones(heads))
        torch.autograd.grad(out, leaves, torch.ones_like(out))
    print(json.dumps(taken))


if __name__ == "__main__":
    main()
