"""A row of one pair divided over processes by PyTorch's parts for FlexAttention: exactness, and what each layer sends.

    python -m benchmarks context-parallel --processes 2 --tokens 2048

Each process has a part of the queries, keys and values of a row. Keys and values are gathered (`flex_cp_allgather`),
and the mask of stem and branches is rewritten for its queries (`_create_cp_block_mask`). Outputs of FlexAttention are
compared with those of one process, and gradients through the gathering by dense attention with the same mask, because
FlexAttention has no backward pass on CPUs. Both functions are private in PyTorch, and this program exists to say what
they give. It runs with gloo, whose times say nothing of GPUs: the bytes do.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness.results import Row, this_call, write_json

HEADS, KEY_HEADS, SIZE = 8, 2, 16
"""Of the attention that is computed."""
LONG = (("8B", 32, 8, 128, 32), ("70B", 64, 8, 128, 80))
"""Heads, key heads, size of a head and layers of models for which bytes are counted."""
LONGEST = 131_072


def mask_of(stem: int, branch: int) -> Any:
    """Return the mask function of a row with one pair: causal, and neither branch sees the other."""

    def mask(batch: Any, head: Any, query: Any, key: Any) -> Any:
        ends = stem + branch
        other = (query >= ends) & (key >= stem) & (key < ends)
        return (query >= key) & ~other

    return mask


def measure(tokens: int) -> Row:
    """Compare the parts of all processes with one process; every process must call."""
    import torch
    from torch import distributed, nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.experimental import _context_parallel
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    private: Any = _context_parallel._attention
    attend: Any = flex_attention
    world, rank = distributed.get_world_size(), distributed.get_rank()
    mesh = init_device_mesh("cpu", (world,))
    branch = tokens // 8
    mask = mask_of(tokens - 2 * branch, branch)
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, tokens, SIZE) for heads in (HEADS, KEY_HEADS, KEY_HEADS, HEADS)]
    query, key, value, upstream = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)

    def own(tensor: Any) -> Any:
        return tensor.chunk(world, 2)[rank]

    def dense(tensors: Any, seen: Any) -> Any:
        query, key, value = tensors
        return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=True)

    def seen_by(function: Any, queries: int) -> Any:
        rows, columns = torch.arange(queries)[:, None], torch.arange(tokens)[None]
        return function(torch.tensor(0), torch.tensor(0), rows, columns)

    whole = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
    with torch.no_grad():
        of_one = create_block_mask(mask, 1, 1, tokens, tokens, "cpu")
        out = attend(query, key, value, block_mask=of_one, enable_gqa=True)
    gradients = torch.autograd.grad(dense(whole, seen_by(mask, tokens)), whole, upstream)

    private._compiled_create_block_mask = create_block_mask  # compiled, it gives the same mask
    private._cp_options.enable_load_balance = False
    block_mask = private._create_cp_block_mask(mask, 1, 1, tokens, tokens, mesh)
    parts = [own(tensor).clone().requires_grad_() for tensor in (query, key, value)]
    every = private.flex_cp_allgather(parts[1], parts[2], 2, mesh.get_group().group_name)
    with torch.no_grad():
        part = attend(own(query), *(one.detach() for one in every), block_mask=block_mask, enable_gqa=True)
    seen = seen_by(block_mask.mask_mod, tokens // world)
    found = torch.autograd.grad(dense([parts[0], *every], seen), parts, own(upstream))
    errors = [
        float((got - own(exact)).norm() / own(exact).norm())
        for got, exact in zip((part, *found), (out, *gradients), strict=True)
    ]
    blocks = torch.tensor([float(block_mask.kv_num_blocks.sum() + block_mask.full_kv_num_blocks.sum())])
    shares = [torch.zeros_like(blocks) for _ in range(world)]
    distributed.all_gather(shares, blocks)
    counts = [float(share) for share in shares]
    return {
        "tokens": tokens,
        "processes": world,
        "errors": dict(zip(("output", "query", "key", "value"), errors, strict=True)),
        "share_of_blocks": [round(one / sum(counts), 3) for one in counts],
    }


def exchanged_gib(tokens: int, processes: int, key_heads: int, size: int, layers: int) -> float:
    """Return the GiB of keys and values that a process receives for a row, and of their gradients that it sends.

    In 16 bits, forward, once more where layers are recomputed, and backward.
    """
    once = 2 * 2 * tokens * key_heads * size * (processes - 1) / processes
    return 3 * layers * once / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks context-parallel",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=2048, help="of the row, a multiple of 128 times the processes")
    parser.add_argument("--out", type=Path, help="file of results")
    options = parser.parse_args()
    if "RANK" not in os.environ:
        from wishbone.run.launch import launch

        raise SystemExit(launch(["context-parallel", *sys.argv[1:]], processes=options.processes, module="benchmarks"))
    from torch import distributed

    distributed.init_process_group("gloo")
    row = measure(options.tokens)
    row["exchanged_gib"] = {
        name: round(exchanged_gib(LONGEST * 5 // 4, options.processes, key_heads, size, layers), 1)
        for name, _, key_heads, size, layers in LONG
    }
    if distributed.get_rank() == 0:
        print(json.dumps(row))
        if options.out:
            write_json(options.out, {"call": this_call(), "result": row})
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
