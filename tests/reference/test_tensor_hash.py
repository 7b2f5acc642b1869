"""The hash is its equation, computed here with Python's integers; every small change shows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wishbone.reference import tensor_hash
from wishbone.reference.tensor_hash import tensor_hashes

BLOCK = 4096
MASK = 2**64 - 1


def multiplier(index: int, which: int, level: int) -> int:
    z = (index + 1 + which * 2**40 + level * 2**50) * 0x9E3779B97F4A7C15 & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return (z ^ z >> 31) | 1


def by_hand(data: bytes) -> tuple[int, ...]:
    data += bytes(-len(data) % 8)
    words = [int.from_bytes(data[i : i + 8], "little", signed=True) for i in range(0, len(data), 8)]
    sums = []
    for which in range(4):
        read = [word if which < 2 else word >> 32 for word in words]
        places = [multiplier(k, which, 0) for k in range(min(BLOCK, len(read)))]
        total = 0
        for block in range(0, len(read), BLOCK):
            part = sum(a * x for a, x in zip(places, read[block : block + BLOCK], strict=False))
            total += multiplier(block // BLOCK, which, 1) * part
        sums.append(total & MASK)
    return tuple(sums)


def one(tensor: Tensor) -> tuple[int, ...]:
    return tensor_hashes([tensor])[0]


def random_tensor(count: int, dtype: torch.dtype) -> Tensor:
    size = torch.empty(0, dtype=dtype).element_size()
    return torch.randint(0, 256, (count * size,), dtype=torch.uint8).view(dtype)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 100, 4096, 8193])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64])
def test_it_is_the_equation(count: int, dtype: torch.dtype) -> None:
    torch.manual_seed(count)
    tensor = random_tensor(count, dtype)
    assert one(tensor) == by_hand(tensor.view(torch.uint8).numpy().tobytes())


def test_it_is_the_equation_over_many_pieces() -> None:
    torch.manual_seed(0)
    tensor = random_tensor(16 * BLOCK * 8 + 5 * BLOCK * 8 + 13, torch.uint8)
    assert one(tensor) == by_hand(tensor.numpy().tobytes())


def test_strides_offsets_and_threads_do_not_matter() -> None:
    torch.manual_seed(0)
    tensor = torch.randn(300, 500)
    expected = one(tensor)
    assert one(tensor.t().contiguous().t()) == expected
    assert one(torch.cat([torch.zeros(3), tensor.flatten()])[3:]) == expected  # begins within a word
    assert one(torch.nn.Parameter(tensor)) == expected
    assert tensor_hashes([torch.zeros(3), tensor, tensor.t()])[1] == expected
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if before > 1 else 2)
        assert one(tensor) == expected
    finally:
        torch.set_num_threads(before)


def test_dtypes_of_one_byte_booleans_and_scalars_are_read_as_bytes() -> None:
    assert one(torch.tensor([True, False, True])) == by_hand(b"\x01\x00\x01")
    assert one(torch.tensor(7, dtype=torch.int64)) == by_hand((7).to_bytes(8, "little"))
    assert one(torch.tensor([1.0, -2.0]).to(torch.float8_e4m3fn)) == by_hand(b"\x38\xc0")
    assert one(torch.empty(0, 5)) == (0, 0, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_every_single_bit_shows(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tensor = random_tensor(24, dtype)
    seen = {one(tensor)}
    data = tensor.view(torch.uint8)
    for byte in range(data.numel()):
        for bit in range(8):
            data[byte] ^= 1 << bit
            seen.add(one(tensor))
            data[byte] ^= 1 << bit
    assert len(seen) == 1 + 8 * data.numel()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_what_happens_to_weights_by_accident_shows(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 96, dtype=dtype)
    negated, two_signs, half_scaled = weight.clone().neg(), weight.clone(), weight.clone()
    two_signs[3, 5] *= -1
    two_signs[40, 7] *= -1
    half_scaled[32:] *= 2
    rows = weight.clone()
    rows[[1, 2]] = rows[[2, 1]]
    changed = [negated, two_signs, half_scaled, rows, weight.t(), weight.flip(0), weight.roll(1), weight + 1e-2]
    assert len({one(tensor) for tensor in [weight, *changed]}) == 1 + len(changed)


def test_every_pair_of_equal_changes_of_top_bits_shows() -> None:
    weight = torch.ones(40, dtype=torch.float64)
    seen = {one(weight)}
    for i in range(40):
        for j in range(i):
            changed = weight.clone()
            changed[[i, j]] = -1.0
            seen.add(one(changed))
    assert len(seen) == 1 + 40 * 39 // 2


def test_blocks_cannot_change_places() -> None:
    torch.manual_seed(0)
    first, second = random_tensor(BLOCK, torch.int64), random_tensor(BLOCK, torch.int64)
    assert one(torch.cat([first, second])) != one(torch.cat([second, first]))


def test_multipliers_are_made_once_for_tensors_of_any_sizes(monkeypatch: pytest.MonkeyPatch):
    tensors = [torch.arange(words) for words in (3, 9 * BLOCK, 2 * BLOCK + 1, 9 * BLOCK, 20 * BLOCK)]
    alone = [tensor_hashes([tensor])[0] for tensor in tensors]
    made: list[int] = []
    own = tensor_hash._multipliers
    monkeypatch.setattr(tensor_hash, "_multipliers", lambda count, *rest: [made.append(count), own(count, *rest)][1])
    assert tensor_hashes(tensors * 10) == alone * 10
    assert made == [BLOCK, 1, 16, 32]
