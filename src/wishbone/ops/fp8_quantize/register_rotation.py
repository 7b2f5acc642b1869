r"""The rotation of `rotation.py` without shared memory: a row stays in the registers of the threads that read it.

A thread has 8 or 16 elements that lie side by side, and the lanes of a warp follow each other. Of the 7 bits of an
element's place in a block of 128, H_2^7 takes one after the other:

    4 bits   two of the thread's elements and two of the lanes: one product of tensor cores with H_16, whose factor and
             result have the layout that the row has already (PTX ISA, mma.m16n8k16)
    1 or 2   the rest of the thread's elements: sums and differences
    2 or 1   of the lanes: each takes the other's element, by shuffles

The sums are float32, of products with +-1, which are exact. Triton does not promise where elements of a row lie. So
each thread compares the columns that it has with those that it should have; if they are others, the row becomes NaN.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

SHUFFLES = {(8, 32): (), (8, 64): (4,), (8, 128): (4, 8), (16, 64): (), (16, 128): (4,)}
"""Lanes that exchange elements, by elements of a thread and columns that are rotated together."""


def instructions(elements: int, turn: int, half: str) -> str:
    """Return the PTX for the elements of a thread: y in the first operands, from x, two in one, and their columns.

    Args:
        elements: of a thread, 8 or 16.
        turn: columns that are rotated together.
        half: "bf16" or "f16", the type of x.
    """
    one, nan = ("0x3F803F80", "0x7FC07FC0") if half == "bf16" else ("0x3C003C00", "0x7E007E00")
    x = [f"${elements + i}" for i in range(elements // 2)]
    column = [f"${elements + elements // 2 + i}" for i in range(elements)]
    lines = [
        f".reg .b32 lane, at, own, off, same, swapped;\n.reg .f32 sum, minus, other, d<{elements}>;\n.reg .pred p;",
        "mov.u32 lane, %laneid;",
        # the signs of H_16 for k = 2 (lane % 4) and k + 1, n = lane / 4, as a pair of numbers
        "and.b32 at, lane, 3;\nshl.b32 at, at, 1;\nshr.u32 own, lane, 2;",
        "and.b32 same, at, own;\npopc.b32 same, same;\nand.b32 same, same, 1;\nmul.lo.u32 same, same, 0x80008000;",
        f"shl.b32 off, own, 31;\nxor.b32 same, same, off;\nxor.b32 same, same, {one};",
        # NaN where the columns are not those that follow the previous lane's
        f"mul.lo.u32 at, lane, {elements};\nxor.b32 off, at, {column[0]};\nand.b32 off, off, {turn - 1};",
    ]
    for i in range(1, elements):
        lines.append(f"sub.s32 at, {column[i]}, {column[0]};\nxor.b32 at, at, {i};\nor.b32 off, off, at;")
    lines.append(f"setp.ne.s32 p, off, 0;\nselp.b32 same, {nan}, same, p;\nxor.b32 swapped, same, 0x80008000;")
    lines.append("mov.f32 minus, 0f00000000;")
    for at in range(0, elements, 8):
        rows = "{" + ", ".join(x[at // 2 + i] for i in (0, 2, 1, 3)) + "}"
        for first, signs in ((at, "{same, same}"), (at + 2, "{same, swapped}")):
            out = "{" + ", ".join(f"d{first + i}" for i in (0, 1, 4, 5)) + "}"
            product = f"mma.sync.aligned.m16n8k16.row.col.f32.{half}.{half}.f32"
            lines.append(f"{product} {out}, {rows}, {signs}, {{minus, minus, minus, minus}};")
    for step in (4, 8)[: elements // 8]:
        for i in (i for i in range(elements) if not i & step):
            j = i + step
            lines.append(f"add.f32 sum, d{i}, d{j};\nsub.f32 d{j}, d{i}, d{j};\nmov.f32 d{i}, sum;")
    for step in SHUFFLES[elements, turn]:
        lines.append(f"and.b32 own, lane, {step};\nsetp.ne.s32 p, own, 0;\nselp.f32 minus, 0fBF800000, 0f3F800000, p;")
        for i in range(elements):
            lines.append(f"mov.b32 own, d{i};\nshfl.sync.bfly.b32 at, own, {step}, 0x1f, 0xffffffff;")
            lines.append(f"mov.b32 other, at;\nfma.rn.f32 d{i}, d{i}, minus, other;")
    lines += [f"mov.f32 ${i}, d{i};" for i in range(elements)]
    return "{\n" + "\n".join(lines) + "\n}"


PTX = {(*kind, half): instructions(*kind, half) for kind in SHUFFLES for half in ("bf16", "f16")}


@triton.constexpr_function
def ptx_of(elements: int, turn: int, dtype: tl.dtype) -> str:
    """Return the instructions for rows of this dtype."""
    return PTX[elements, turn, "bf16" if dtype == tl.bfloat16 else "f16"]


@triton.constexpr_function
def operands(elements: int) -> str:
    """Return the kinds of the operands: results, pairs of x, columns."""
    return ",".join(["=f"] * elements + ["r"] * (elements // 2 + elements))


@triton.jit
def rotated_in_registers(x, column, TURN: tl.constexpr, ELEMENTS: tl.constexpr):
    """Return H of each block of TURN columns, in float32; all of them NaN where elements lie elsewhere than expected.

    Args:
        x: [BLOCK], float16 or bfloat16.
        column: [BLOCK], of the elements, int32, those of a block of TURN beginning at a multiple of TURN.
        TURN: columns that are rotated together.
        ELEMENTS: of a thread, side by side.
    """
    return tl.inline_asm_elementwise(
        ptx_of(ELEMENTS, TURN, x.dtype),
        operands(ELEMENTS),
        [x, column],
        dtype=tl.float32,
        is_pure=True,
        pack=ELEMENTS,
    )


def elements_in_registers(columns: int, block: int, turn: int, warps: int, *rows: Tensor, wanted: int = 16) -> int:
    """Return how many elements of a thread lie side by side where rows can be rotated so; 0 where they cannot.

    Rows are read 16 bytes at a time then, as Triton makes it of addresses and sizes that are multiples of 16.

    Args:
        columns: of a row.
        block: columns that a kernel takes at a time.
        turn: columns that are rotated together.
        warps: of a program.
        rows: what the kernel reads.
        wanted: 8 or 16.
    """
    fits = (
        (wanted, turn) in SHUFFLES
        and columns % 16 == 0
        and block >= warps * 32 * wanted
        and all(x.element_size() == 2 and x.data_ptr() % 16 == 0 and x.stride(0) % 16 == 0 for x in rows)
        and runs_on(rows[0].device)
    )
    return wanted if fits else 0


@functools.cache
def runs_on(device: torch.device) -> bool:
    """Return whether a device has the instructions: NVIDIA's from compute capability 8.0 on."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)
