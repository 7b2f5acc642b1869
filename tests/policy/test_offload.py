"""Memory that recorded passes take for saved tensors: in the same order, and where it was. Copies: `tests/gpu`."""

from __future__ import annotations

import torch

from wishbone.policy.offload import HostBuffers, offloaded_activations


def test_every_pass_takes_the_same_buffers_in_the_same_order() -> None:
    buffers = HostBuffers(allocate=lambda shape, dtype: torch.empty(shape, dtype=dtype))
    first, again, shorter = buffers.from_first(), buffers.from_first(), buffers.from_first()
    long = [first(torch.Size([4, 6]), torch.bfloat16), first(torch.Size([8]), torch.float32)]
    assert [(tuple(one.shape), one.dtype) for one in long] == [((4, 6), torch.bfloat16), ((8,), torch.float32)]
    addresses = [one.data_ptr() for one in long]
    assert len(set(addresses)) == 2
    assert [again(one.shape, one.dtype).data_ptr() for one in long] == addresses
    assert [shorter(torch.Size([2, 6]), torch.bfloat16).data_ptr() for _ in range(2)] == addresses


def test_a_buffer_that_is_too_small_stays_beside_the_larger_one() -> None:
    buffers = HostBuffers(allocate=lambda shape, dtype: torch.empty(shape, dtype=dtype))
    small = buffers.from_first()(torch.Size([4]), torch.float32).fill_(7)
    larger = buffers.from_first()(torch.Size([400]), torch.float32).fill_(1)
    assert larger.data_ptr() != small.data_ptr() and small.tolist() == [7] * 4


def test_on_a_cpu_tensors_stay_and_a_failed_pass_ends_as_any_other() -> None:
    x = torch.randn(2**20, requires_grad=True)
    with offloaded_activations() as moved:
        assert moved.pack(x) is x and moved.unpack(x) is x
        y = x.exp().sum()
    (gradient,) = torch.autograd.grad(y, x)
    assert torch.equal(gradient, x.exp())
