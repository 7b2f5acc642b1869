"""The 32 lanes of a warp in NumPy: as much of PTX as `register_rotation.py` writes (PTX ISA 8.5, chapter 9).

Each register is an array [32] of uint32; floats are read from its bits.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

Lanes = NDArray[np.uint32]
LANES = np.arange(32, dtype=np.uint32)
INTEGERS = {
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "shl": np.left_shift,
    "shr": np.right_shift,
    "mul": np.multiply,
    "sub": np.subtract,
}


def run(text: str, operands: dict[str, Lanes]) -> dict[str, Lanes]:
    """Return all registers after the instructions; `operands` are those that begin with $."""
    registers = {**operands, "%laneid": LANES}
    truths: dict[str, NDArray[np.bool_]] = {}

    def read(name: str) -> Lanes:
        if re.fullmatch(r"0f[0-9A-Fa-f]{8}", name):
            return np.full(32, int(name[2:], 16), np.uint32)
        return np.full(32, int(name, 0), np.uint32) if name[0].isdigit() else registers[name]

    def floats(name: str) -> NDArray[np.float32]:
        return read(name).view(np.float32)

    for instruction in text.strip("{} \n").split(";"):
        name, _, rest = instruction.strip().partition(" ")
        if not name or name == ".reg":
            continue
        kind, of = name.split(".")[0], name.rpartition(".")[2]
        into, *sources = re.findall(r"\{[^}]*\}|[^,\s]+", rest)
        if kind == "mma":
            results = tensor_core_product(name, [[read(one) for one in listed(s)] for s in sources[:2]])
            registers.update(zip(listed(into), results, strict=True))
        elif kind == "setp":
            truths[into] = read(sources[0]) != read(sources[1])
        elif kind == "selp":
            registers[into] = np.where(truths[sources[2]], read(sources[0]), read(sources[1]))
        elif kind == "shfl":
            registers[into] = read(sources[0])[LANES ^ int(sources[1])]
        elif kind == "mov":
            registers[into] = read(sources[0])
        elif kind == "popc":
            registers[into] = np.array([int(one).bit_count() for one in read(sources[0])], np.uint32)
        elif of == "f32":
            a, b = floats(sources[0]), floats(sources[1])
            value = {"add": a + b, "sub": a - b, "fma": a * b + (floats(sources[2]) if kind == "fma" else 0)}[kind]
            registers[into] = value.astype(np.float32).view(np.uint32)
        else:
            registers[into] = INTEGERS[kind](read(sources[0]), read(sources[1]))
    return registers


def listed(braces: str) -> list[str]:
    """Return the names between braces."""
    return [one.strip() for one in braces.strip("{}").split(",")]


def tensor_core_product(name: str, factors: list[list[Lanes]]) -> list[Lanes]:
    """Return the result of mma.m16n8k16, 4 registers, from 4 of the first factor and 2 of the second (9.7.14.5.8)."""
    assert name.startswith("mma.sync.aligned.m16n8k16.row.col.f32.")
    a, b = np.zeros((16, 16), np.float32), np.zeros((16, 8), np.float32)
    group, within = LANES // 4, LANES % 4
    for i, register in enumerate(factors[0]):
        for half, value in enumerate(pair(register, "bf16" in name)):
            a[group + 8 * (i % 2), 2 * within + half + 8 * (i // 2)] = value
    for i, register in enumerate(factors[1]):
        for half, value in enumerate(pair(register, "bf16" in name)):
            b[2 * within + half + 8 * i, group] = value
    product = a @ b
    return [product[group + 8 * (i // 2), 2 * within + i % 2].view(np.uint32) for i in range(4)]


def pair(register: Lanes, brain: bool) -> list[NDArray[np.float32]]:
    """Return the two 16-bit numbers of a register, the lower half first."""
    halves = register & 0xFFFF, register >> 16
    if brain:
        return [(half << 16).astype(np.uint32).view(np.float32) for half in halves]
    return [half.astype(np.uint16).view(np.float16).astype(np.float32) for half in halves]
