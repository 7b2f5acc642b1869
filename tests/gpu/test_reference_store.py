"""On a CUDA device: hashes are the CPU's, and a remembered reference never waits for the device between flushes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny import tiny_model, tiny_pairs
from torch import Tensor

from wishbone.data.batch import PreferenceBatch, truncated_pair
from wishbone.engine.execution import UNLIMITED, Execution
from wishbone.model.adapter import add_adapter
from wishbone.policy.policy import Policy
from wishbone.reference.cache import CachedReference
from wishbone.reference.identity import reference_identity
from wishbone.reference.reference import AdapterDisabled
from wishbone.reference.store import ReferenceStore
from wishbone.reference.tensor_hash import tensor_hashes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

PAIRS = [truncated_pair(*pair) for pair in tiny_pairs(6)]


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64])
def test_hashes_are_the_same_on_both_devices(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    sizes = [0, 1, 9, 4095, 4096 * 8 * 20 + 3, 4096 * 4097 * 2 + 11]
    tensors = [torch.randint(0, 256, (n * dtype.itemsize,), dtype=torch.uint8).view(dtype) for n in sizes]
    assert tensor_hashes([tensor.cuda() for tensor in tensors]) == tensor_hashes(tensors)


def test_hashing_waits_no_oftener_for_many_tensors_than_for_one() -> None:
    tensors = [parameter.detach() for parameter in tiny_model("llama").cuda().parameters()]

    def waits(part: list[Tensor]) -> int:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            tensor_hashes(part)
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(warning.message) for warning in caught)

    waits(tensors)
    assert 1 <= waits(tensors) == waits(tensors[:1])


def test_the_device_is_part_of_the_identity() -> None:
    model = tiny_model("llama")
    assert reference_identity(Policy(model)) != reference_identity(Policy(model.cuda()))


class OnDevice:
    """A reference whose values lie on the device already, so that all waiting is that of the memory before it."""

    def __init__(self, values: dict[int, Tensor]) -> None:
        self.values = values

    def logps(self, batch: PreferenceBatch, execution: Execution = UNLIMITED) -> Tensor:
        return torch.cat([self.values[id(pair.chosen)] for pair in batch.pairs])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_values_are_the_live_ones_and_nothing_waits(tmp_path: Path, dtype: torch.dtype) -> None:
    policy = Policy(add_adapter(tiny_model("llama", dtype, head_dim=16).cuda(), rank=4), row_multiple=128)
    batch = policy.collate(PAIRS)
    live = AdapterDisabled(policy).logps(batch)
    inner = OnDevice({id(pair.chosen): live[2 * i : 2 * i + 2] for i, pair in enumerate(PAIRS)})

    def begun(name: str) -> CachedReference:
        kept = CachedReference(inner, policy, ReferenceStore(tmp_path / name), lambda: "the same")
        kept.begin()
        return kept

    cold = begun("store")
    torch.cuda.synchronize()
    with no_waiting():
        first = cold.logps(batch)
    cold.flush()
    warm = begun("store")
    with no_waiting():
        stored = warm.logps(batch)
    assert torch.equal(first, live) and torch.equal(stored, live)
    assert (cold.computed, warm.computed) == (6, 0)

    part = begun("other")
    part.logps(policy.collate(PAIRS[1:4]))
    part.flush()
    with no_waiting():
        mixed = part.logps(batch)
    assert (part.reused, part.computed) == (3, 6)
    assert torch.equal(mixed, live)


def test_values_of_other_rows_differ_by_no_more_than_rounding(tmp_path: Path) -> None:
    model = add_adapter(tiny_model("llama", head_dim=16).cuda(), rank=4)
    policy = Policy(model, row_multiple=128)
    kept = CachedReference(
        AdapterDisabled(policy), policy, ReferenceStore(tmp_path / "store"), lambda: reference_identity(policy)
    )
    for pair in PAIRS:
        kept.logps(policy.collate([pair]))
    kept.flush()
    live = AdapterDisabled(policy).logps(policy.collate(PAIRS))
    assert kept.logps(policy.collate(PAIRS)).cpu() == pytest.approx(live.cpu(), rel=1e-5)
