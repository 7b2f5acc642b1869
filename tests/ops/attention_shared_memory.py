"""Compile the attention kernels for a GPU that is not here, and print the shared memory that each of them takes.

python attention_shared_memory.py CAPABILITY SHARED_BYTES SIZE DTYPE [SIZE DTYPE ...]
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

import wishbone.ops.prefix_attention.triton as attention
from wishbone.ops.prefix_attention.layout import Document, PrefixLayout

LAYOUT = PrefixLayout((Document(0, 100, (300, 512)),))


class AbsentGpu:
    """As much of a driver as compilation asks for."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


class Compiled:
    """A kernel that is compiled where it would be launched."""

    def __init__(self, kernel: Any, taken: list[int]) -> None:
        self._kernel, self._taken = kernel, taken

    def __getitem__(self, grid: Any) -> Any:
        def compile_it(*arguments: Any, **options: Any) -> None:
            self._taken.append(self._kernel.warmup(*arguments, grid=grid, **options).metadata.shared)

        return compile_it


def main() -> None:
    capability, shared_bytes = int(sys.argv[1]), int(sys.argv[2])
    triton.runtime.driver.set_active(AbsentGpu(capability))
    attention._limits = lambda device: (shared_bytes, divmod(capability, 10))
    taken: list[int] = []
    for name in ("attend", "query_gradient", "key_gradient"):
        setattr(attention, name, Compiled(getattr(attention, name), taken))
    found = {}
    for size, dtype in zip(sys.argv[3::2], sys.argv[4::2], strict=True):
        taken.clear()
        inputs = [
            torch.randn(1, heads, LAYOUT.length, int(size), dtype=getattr(torch, dtype)).requires_grad_()
            for heads in (4, 2, 2)
        ]
        out = attention.prefix_attention_triton(*inputs, LAYOUT, scale=0.1)
        torch.autograd.grad(out, inputs, torch.ones_like(out))
        found[f"{size} {dtype}"] = max(taken)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
