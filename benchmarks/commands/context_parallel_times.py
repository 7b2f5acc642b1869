"""Attention of one layer over a long pair: on one GPU, and divided over several with the keys of all gathered.

    python -m benchmarks context-parallel-times --processes 2 --lengths 131072,65536 --out context-parallel-h200.json

A pair has two sequences of a length, a quarter of each completion, so that its row is 5/4 as long. Heads are those of
Llama-3.1-8B. Forward and backward pass of

    kernel one      Wishbone's kernels, the whole row on one GPU
    flex one        FlexAttention, the whole row on one GPU
    flex parts      FlexAttention on the queries of a part, keys and values gathered (`flex_cp_allgather`); equal parts
    flex balanced   the same with blocks of 128 tokens dealt out by what they see (`_PTRRLoadBalancer`)

`gathering` is what keys, values and their gradients take alone. Times are means of repetitions, of the slowest process.
The parts are PyTorch's, and private there; `context-parallel` shows that they are exact. Without a GPU nothing is
compiled, and FlexAttention, which has no backward pass there, runs forward only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.commands.context_parallel import mask_of
from benchmarks.harness.results import Row, this_call, write_json

HEADS, KEY_HEADS, SIZE = 32, 8, 128
REPETITIONS = 3
FORMS = ("kernel one", "flex one", "flex parts", "flex balanced")


class Attention:
    """The tensors of one layer and what computes them, in this process of several.

    Args:
        length: tokens of each of the two sequences, a multiple of 512 times the processes.
        size: of a head.
    """

    def __init__(self, length: int, size: int) -> None:
        import torch
        from torch import distributed
        from torch.distributed.device_mesh import init_device_mesh

        self.world, self.rank = distributed.get_world_size(), distributed.get_rank()
        self.kind = "cuda" if torch.cuda.is_available() else "cpu"
        self.mesh = init_device_mesh(self.kind, (self.world,))
        self.branch = length // 4
        self.tokens = length + self.branch
        self.mask = mask_of(length - self.branch, self.branch)
        dtype = torch.bfloat16 if self.kind == "cuda" else torch.float32
        torch.manual_seed(0)
        shapes = [(1, heads, self.tokens, size) for heads in (HEADS, KEY_HEADS, KEY_HEADS, HEADS)]
        self.query, self.key, self.value, self.upstream = (
            torch.randn(shape, device=self.kind, dtype=dtype) for shape in shapes
        )

    def flex(self, query: Any, key: Any, value: Any, mask: Any) -> Any:
        """Return FlexAttention's output, compiled on GPUs."""
        import torch
        from torch.nn.attention.flex_attention import flex_attention

        if self.kind == "cpu":
            query, key, value = (tensor.detach() for tensor in (query, key, value))
            return flex_attention(query, key, value, block_mask=mask, enable_gqa=True)
        compiled: Any = torch.compile(flex_attention, dynamic=False)
        return compiled(query, key, value, block_mask=mask, enable_gqa=True)

    def block_mask(self, mask: Any) -> Any:
        """Return the blocks of the whole row."""
        import torch
        from torch.nn.attention.flex_attention import create_block_mask

        create: Any = create_block_mask if self.kind == "cpu" else torch.compile(create_block_mask, dynamic=False)
        return create(mask, 1, 1, self.tokens, self.tokens, device=self.kind)

    def prepared(self, form: str) -> tuple[Callable[..., Any], list[Any], Any, Any]:
        """Return a function of query, key and value, these three, its upstream gradient, and the order of the row.

        The order is None where the row is whole or in parts as it lies.
        """
        from torch.distributed.tensor.experimental import _context_parallel

        whole = [self.query, self.key, self.value]
        if form == "kernel one":
            from wishbone.ops.prefix_attention import Document, PrefixLayout, prefix_attention

            stem = self.tokens - 2 * self.branch
            layout = PrefixLayout((Document(0, stem, (stem + self.branch, self.tokens)),))
            scale = self.query.shape[-1] ** -0.5
            return lambda q, k, v: prefix_attention(q, k, v, layout, scale=scale), whole, self.upstream, None
        if form == "flex one":
            blocks = self.block_mask(self.mask)
            return lambda q, k, v: self.flex(q, k, v, blocks), whole, self.upstream, None
        private: Any = _context_parallel._attention
        balancer, order = None, None
        if form == "flex balanced":
            from torch.distributed.tensor.experimental._context_parallel import _load_balancer

            balancer = _load_balancer._PTRRLoadBalancer(self.block_mask(self.mask), self.world)
            order = balancer._generate_indices()[0]
        private._cp_options.enable_load_balance = False
        if self.kind == "cpu":
            from torch.nn.attention.flex_attention import create_block_mask

            private._compiled_create_block_mask = create_block_mask
        blocks = private._create_cp_block_mask(
            self.mask, 1, 1, self.tokens, self.tokens, self.mesh, load_balancer=balancer
        )
        group = self.mesh.get_group().group_name

        def attend(query: Any, key: Any, value: Any) -> Any:
            keys, values = private.flex_cp_allgather(key, value, 2, group)
            return self.flex(query, keys, values, blocks)

        mine = [self.own(tensor, order) for tensor in (*whole, self.upstream)]
        return attend, mine[:3], mine[3], order

    def own(self, tensor: Any, order: Any) -> Any:
        """Return this process's part of a whole tensor."""
        ordered = tensor if order is None else tensor[:, :, order]
        return ordered.chunk(self.world, 2)[self.rank].contiguous()

    def gathering(self) -> tuple[Callable[..., Any], list[Any], Any, Any]:
        """Return the same for gathering alone, whose output holds the keys and values of all."""
        import torch
        from torch.distributed.tensor.experimental import _context_parallel

        private: Any = _context_parallel._attention
        group = self.mesh.get_group().group_name
        parts = [self.own(tensor, None) for tensor in (self.key, self.value)]

        def gather(key: Any, value: Any) -> Any:
            return torch.stack(private.flex_cp_allgather(key, value, 2, group))

        return gather, parts, torch.stack((self.key, self.value)), None


def slowest(seconds: float, kind: str) -> float:
    """Return the most of all processes."""
    import torch
    from torch import distributed

    most = torch.tensor([seconds], device=kind, dtype=torch.float32)
    distributed.all_reduce(most, distributed.ReduceOp.MAX)
    return float(most)


def times(attention: Attention, prepared: tuple[Callable[..., Any], list[Any], Any, Any]) -> tuple[Row, Any]:
    """Return milliseconds of a forward and of a backward pass, and the output; every process must call."""
    import torch
    from torch import distributed

    from benchmarks.harness.clock import now

    function, inputs, upstream, _ = prepared
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    forward, backward, out = [], [], None
    for _ in range(1 + REPETITIONS):
        distributed.barrier()
        begun = now()
        out = function(*leaves)
        done = now()
        forward.append(slowest(done - begun, attention.kind))
        if out.requires_grad:
            begun = now()
            torch.autograd.grad(out, leaves, upstream)
            backward.append(slowest(now() - begun, attention.kind))
    found: Row = {"forward_ms": round(1e3 * sum(forward[1:]) / REPETITIONS, 2)}
    if backward:
        found["backward_ms"] = round(1e3 * sum(backward[1:]) / REPETITIONS, 2)
    return found, out


def measure(length: int, size: int, forms: list[str]) -> Iterator[Row]:
    """Yield the times of the forms so far for pairs of one length; every process must call."""
    import torch

    attention = Attention(length, size)
    row: Row = {"length": length, "row_tokens": attention.tokens, "processes": attention.world}
    row["gathered_mib"] = round(
        2 * attention.key.numel() * attention.key.element_size() * (attention.world - 1) / attention.world / 2**20, 1
    )
    row["gathering"], _ = times(attention, attention.gathering())
    exact = None
    for form in forms:
        torch.compiler.reset()
        prepared = attention.prepared(form)
        row[form], out = times(attention, prepared)
        out = out.detach().float()
        if exact is None:
            exact = out
        expected = attention.own(exact, prepared[3]) if out.shape != exact.shape else exact
        row[form]["apart"] = round(slowest(float((out - expected).norm() / expected.norm()), attention.kind), 7)
        if attention.rank == 0:
            print(json.dumps({"length": length, form: row[form]}), flush=True)
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks context-parallel-times",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--lengths", default="131072,65536", help="tokens of each sequence, by commas")
    parser.add_argument("--head-size", type=int, default=SIZE)
    parser.add_argument("--forms", default=",".join(FORMS), help="by commas; others are compared with the first")
    parser.add_argument("--commit", help="commit of this code, where git cannot tell")
    parser.add_argument("--out", type=Path, help="file of results, written after each form")
    options = parser.parse_args()
    if "RANK" not in os.environ:
        from wishbone.run.launch import launch

        arguments = ["context-parallel-times", *sys.argv[1:]]
        raise SystemExit(launch(arguments, processes=options.processes, module="benchmarks"))
    import torch
    from torch import distributed

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    call = this_call(options.commit) | {"torch": torch.__version__}
    rows: list[Row] = []
    for length in map(int, options.lengths.split(",")):
        for row in measure(length, options.head_size, options.forms.split(",")):
            if distributed.get_rank() == 0 and options.out:
                write_json(options.out, {"call": call, "results": [*rows, row]})
        rows.append(row)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
