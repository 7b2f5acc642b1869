"""The kernels of shared-prefix attention, each alone, with other tiles, in one layer.

The row holds 8 pairs. A tile is written TOKENSxHEADSxKEYS-WARPS-STAGES, and -REGISTERS if they are limited. Each kernel
runs with the tile that the product takes, with programs in the order of the row, and with other tiles. Results are
compared with the product's, and those with the reference in float64 over a shorter row. Useful operations are those of
scores that are seen: two products forward, three for the gradient of queries, four for those of keys and values.

With `--libraries`, FlashAttention 2 runs beside them as PyTorch has it, over gathered keys, and cuDNN's attention over
plain sequences of equal length. Without a GPU, Triton's interpreter runs a tiny row, to show that it works, no more.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.attention_layer import KERNELS, Launch, Layer, apart, milliseconds
from benchmarks.harness.results import Results, Row

if TYPE_CHECKING:
    from torch import Tensor

PAIRS, CHECKED = 8, 2
LAYER, TINY = "32x8x128", "4x1x16"
COMPILERS = 16
TILES = {
    "attend": "64x1x64-4-3 32x4x64-8-2-128 32x4x64-8-3-128 32x4x32-8-3-128 16x4x64-4-3",
    "query_gradient": "64x1x32-4-2 32x4x32-8-3-128 32x4x64-8-2-128 16x4x32-4-2 64x1x64-4-2",
    "key_gradient": "32x1x64-4-3 64x1x64-4-2 64x1x64-4-3 32x1x64-4-2",
}


def tile_of(written: str) -> Any:
    """Read a tile."""
    from wishbone.ops.prefix_attention.tiles import Tile

    return Tile(*(int(number) for number in re.split("[x-]", written)))


def kernels(layer: Layer, written: dict[str, list[str]]) -> Iterator[Row]:
    """Times of each kernel with each of its tiles."""
    import torch
    from triton.runtime.errors import OutOfResources

    from wishbone.ops.prefix_attention import triton as attention
    from wishbone.ops.prefix_attention.tiles import tiles_for

    usual = tiles_for(layer.size, 2, layer.heads // layer.key_heads, *attention._limits(layer.device))
    choices = []
    for at, (name, (field, _)) in enumerate(KERNELS.items()):
        own = "x".join(map(str, getattr(usual, field)[:3])) + "".join(f"-{n}" for n in getattr(usual, field)[3:] if n)
        for tile in dict.fromkeys((own, *written[name])):
            choices.append((at, name, tile, tile == own, replace(usual, **{field: tile_of(tile)})))
    if torch.cuda.is_available():
        launches = [layer.launches(tiles, runs=False)[0][at] for at, *_, tiles in choices]
        with ThreadPoolExecutor(COMPILERS) as pool:
            list(pool.map(_compile, launches))
    _, wanted = layer.launches(usual, runs=True)
    for at, name, tile, is_own, tiles in choices:
        row: Row = {"system": name, "case": f"{tile}, the product's" if is_own else tile, "status": "ok"}
        try:
            noted, got = layer.launches(tiles, runs=True)
        except OutOfResources as error:
            yield row | {"status": "failed", "failure": str(error)}
            continue
        yield row | {"apart": apart(got, wanted)} | _rate(layer, name, noted[at])
        if is_own:
            yield row | {"case": f"{tile}, in the row's order"} | _rate(layer, name, _in_order(noted[at]))


def _compile(launch: Launch) -> None:
    kernel, grid, arguments, options = launch
    kernel.warmup(*arguments, grid=grid, **options)


def _rate(layer: Layer, name: str, launch: Launch) -> Row:
    """Milliseconds and useful TFLOP/s of a launch; none without a GPU."""
    kernel, grid, arguments, options = launch
    ms = milliseconds(lambda: kernel[grid](*arguments, **options))
    return {"ms": ms, "tflops": round(KERNELS[name][1] * layer.operations() / ms / 1e9)} if ms else {}


def _in_order(launch: Launch) -> Launch:
    """The launch with its programs, which four tables describe, in the order of the row."""
    import torch

    kernel, grid, arguments, options = launch
    first = next(at for at, one in enumerate(arguments) if isinstance(one, torch.Tensor) and one.dtype == torch.int32)
    tables = arguments[first : first + 4]
    order = torch.argsort(tables[0])
    return kernel, grid, (*arguments[:first], *(table[order] for table in tables), *arguments[first + 4 :]), options


def libraries(layer: Layer) -> Iterator[Row]:
    """FlashAttention over gathered keys, and cuDNN over plain sequences of equal length."""
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    ops = torch.ops.aten
    segments = [one for one in layer.layout.segments() if one[1] > one[0]]
    keys = [[*range(stem_start, stem_end), *range(start, end)] for start, end, stem_start, stem_end in segments]
    gathered = torch.tensor([key for one in keys for key in one], device=layer.device)
    query, key, value = (one.detach()[0].transpose(0, 1) for one in layer.inputs)
    upstream = layer.upstream[0].transpose(0, 1).contiguous()

    def ends(lengths: list[int]) -> Tensor:
        return torch.tensor([0, *lengths], device=layer.device).cumsum(0).int()

    queries = [end - start for start, end, _, _ in segments]
    cu = ends(queries), ends([len(one) for one in keys]), max(queries), max(len(one) for one in keys)

    def gather() -> tuple[Tensor, Tensor]:
        return key[gathered], value[gathered]

    k, v = gather()
    out, lse, seed, unused, _ = ops._flash_attention_forward(query, k, v, *cu, 0.0, True, False)

    def backward() -> tuple[Tensor, ...]:
        return tuple(ops._flash_attention_backward(upstream, query, k, v, out, lse, *cu, 0.0, True, seed, unused))

    def scatter() -> list[Tensor]:
        found = []
        for gradient in (k, v):
            summed = torch.zeros(key.shape, device=layer.device, dtype=torch.float32)
            found.append(summed.index_add_(0, gathered, gradient.float()).bfloat16())
        return found

    work = layer.operations()
    _, wanted = layer.launches(None, runs=True)
    ms = {
        "gather": milliseconds(gather),
        "forward": milliseconds(lambda: ops._flash_attention_forward(query, k, v, *cu, 0.0, True, False)),
        "backward": milliseconds(backward),
        "scatter": milliseconds(scatter),
    }
    row: Row = {"system": "FlashAttention 2", "case": "gathered keys", "status": "ok", "ms": ms}
    row["apart"] = apart([out.transpose(0, 1)[None]], wanted[:1])
    row["tflops"] = [round(n * work / ms[name] / 1e9) for n, name in ((2, "forward"), (5, "backward"))]
    yield row
    length, count = 640, 16
    shapes = [(count, n, length, layer.size) for n in (layer.heads, layer.heads, layer.heads)]
    q, k, v = (torch.randn(shape, device=layer.device, dtype=torch.bfloat16).requires_grad_() for shape in shapes)
    work = 2 * count * layer.heads * layer.size * length * (length + 1) // 2
    for name, backend in (("cuDNN", SDPBackend.CUDNN_ATTENTION), ("FlashAttention 2", SDPBackend.FLASH_ATTENTION)):
        with sdpa_kernel(backend):
            made = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            given = torch.randn_like(made)
            plain = milliseconds(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))
            back = milliseconds(lambda: torch.autograd.grad(made, (q, k, v), given, retain_graph=True))  # noqa: B023
        times = {"forward": plain, "backward": back}
        row = {"system": name, "case": f"{count} plain sequences of {length}", "status": "ok", "ms": times}
        row["tflops"] = [round(n * work / ms / 1e9) for n, ms in ((2, plain), (5, back))]
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks attention", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, tiles in TILES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", nargs="*", default=tiles.split(), metavar="TILE")
    parser.add_argument("--layer", default=LAYER, help="query heads, key heads and their dimension")
    parser.add_argument("--lengths", default="ultrafeedback", help="workload whose lengths the pairs have")
    parser.add_argument("--libraries", action="store_true", help="with attention of PyTorch's libraries beside it")
    parser.add_argument("--out", type=Path, help="file of results; an existing one is continued")
    parser.add_argument("--commit", help="commit of this code, where git cannot tell")
    options = parser.parse_args()
    import torch

    cuda = torch.cuda.is_available()
    if not cuda:
        os.environ["TRITON_INTERPRET"] = "1"
    results = Results.read(options.out) if options.out and options.out.exists() else Results()
    results.begin_call(options.commit)

    def note(row: Row) -> None:
        row["case"] = f"{options.lengths}, {row['case']}"
        results.add({"kind": "attention", "size": shape, **row, "versions": versions})
        print({name: value for name, value in row.items() if name != "tile"}, flush=True)
        if options.out:
            results.write(options.out)

    versions = {name: version(name) for name in ("torch", "triton")}
    shape = options.layer if cuda else TINY
    checked = Layer(shape, options.lengths, CHECKED)
    errors = apart(checked.launches(None, runs=True)[1], checked.exact())
    note({"system": "product", "case": "against float64", "status": "ok", "apart": errors})
    layer = Layer(shape, options.lengths, PAIRS if cuda else CHECKED)
    if options.libraries:
        for row in libraries(layer):
            note(row)
    for row in kernels(layer, {name: getattr(options, name) for name in TILES}):
        note(row)


if __name__ == "__main__":
    main()
