"""The rotation of rows in registers: its instructions, run for a warp in NumPy, against H."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from ptx_of_a_warp import run
from torch import Tensor

from wishbone.ops.fp8_quantize.rotation import rotated

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="the instructions stand beside Triton kernels")

KINDS = [(8, 32), (8, 64), (8, 128), (16, 64), (16, 128)]


def turned(x: Tensor, columns: Tensor, elements: int, turn: int) -> Tensor:
    """Return what a warp makes of x [32 * elements]."""
    from wishbone.ops.fp8_quantize.register_rotation import instructions

    text = instructions(elements, turn, "bf16" if x.dtype == torch.bfloat16 else "f16")
    pairs = x.view(torch.int16).numpy().view(np.uint32).reshape(32, elements // 2)
    operands = {f"${elements + i}": pairs[:, i].copy() for i in range(elements // 2)}
    places = columns.numpy().astype(np.uint32).reshape(32, elements)
    operands |= {f"${elements + elements // 2 + i}": places[:, i].copy() for i in range(elements)}
    registers = run(text, operands)
    return torch.from_numpy(np.stack([registers[f"${i}"].view(np.float32) for i in range(elements)], 1)).flatten()


@pytest.mark.parametrize(("elements", "turn"), KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_warp_rotates_its_row(elements: int, turn: int, dtype: torch.dtype) -> None:
    """Whole numbers, so that float32 sums are exact in any order."""
    x = torch.randint(-99, 99, (32 * elements,), generator=torch.Generator().manual_seed(0)).to(dtype)
    at = 4096 + torch.arange(32 * elements)
    assert torch.equal(turned(x, at, elements, turn), rotated(x, turn))


@pytest.mark.parametrize(("elements", "turn"), KINDS)
def test_a_row_that_lies_elsewhere_becomes_nan(elements: int, turn: int) -> None:
    x, right = torch.ones(32 * elements, dtype=torch.bfloat16), torch.arange(32 * elements)
    half = elements // 2
    lanes_share_columns = right.view(32, elements).repeat_interleave(2, 0)[:32]
    columns_apart = torch.cat([2 * right.view(32, elements)[:, :half], 2 * right.view(32, elements)[:, half:]], 1)
    two_pieces = torch.cat([right.view(64, half)[:32], right.view(64, half)[32:]], 1)
    for columns in (lanes_share_columns, columns_apart, two_pieces):
        assert turned(x, columns.flatten(), elements, turn).isnan().any(), "so the scale of the row is NaN"


@pytest.mark.parametrize("columns", [4096, 576, 14336])
def test_only_rows_that_are_read_16_bytes_at_a_time_are_rotated_so(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wishbone.ops.fp8_quantize import register_rotation, rotation_block

    def elements(x: Tensor, **options: int) -> int:
        return register_rotation.elements_in_registers(columns, 16384, rotation_block(columns), 4, x, **options)

    x = torch.ones(3, columns + 16, dtype=torch.bfloat16)
    assert elements(x[:, :columns]) == 0, "a processor has no such instructions"
    monkeypatch.setattr(register_rotation, "runs_on", lambda _: True)
    assert elements(x[:, :columns]) == 16 and elements(x[:, :columns], wanted=8) == 8
    assert elements(x[:, 3 : columns + 3]) == elements(x[:, :columns].float()) == 0
    assert elements(torch.ones(3, columns + 9, dtype=torch.bfloat16)[:, :columns]) == 0
    assert register_rotation.elements_in_registers(96, 128, 32, 4, x) == 0, "too few columns for a warp"
