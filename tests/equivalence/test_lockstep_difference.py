"""What the policy differs by in a tensor of its own, through whole models: equal in float64, truer in 16 bits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_lockstep import PAIRS, adapted, assert_close, both_ways, gradients, policy_of, step_of, trained
from tiny import loaded_in_fp8, tiny_model, tiny_pairs
from torch import Tensor

from wishbone.data.batch import TokenizedPair
from wishbone.engine.execution import EVERYTHING, NOTHING, Execution, Room
from wishbone.errors import RequestError
from wishbone.fused.layers import FusedLayers
from wishbone.fused.lockstep import Lockstep
from wishbone.model.adapter import add_adapter
from wishbone.model.eight_bit_linear import inputs_not_rounded
from wishbone.policy.lockstep import DIFFERENCE_VARIABLE, LockstepReference
from wishbone.policy.policy import Policy
from wishbone.reference.reference import AdapterDisabled
from wishbone.reference.synchronized import SynchronizedAdapter

MORE = [TokenizedPair(p + c, p + r, len(p), len(p)) for p, c, r in tiny_pairs(40)]
"""Enough pairs for a mean of errors."""


def hidden(policy: Policy, beside: LockstepReference = LockstepReference()) -> Lockstep:  # noqa: B008
    policy.model.eval()
    with torch.no_grad(), policy.running():
        found = policy.hidden_states(policy.collate(PAIRS), reference=beside)
    assert isinstance(found, Lockstep)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "execution"),
    [
        ("llama", Execution(64, NOTHING)),
        ("qwen3", Execution(10**6, NOTHING, tile_tokens=16)),
        ("gemma2", Execution(64, EVERYTHING)),
        ("gemma3_text", Execution(64, EVERYTHING)),
        ("phi3", Execution(64, NOTHING)),
        ("granite", Execution(64, EVERYTHING)),
        ("mixtral", Execution(64, EVERYTHING)),
        ("cohere", Execution(64, EVERYTHING)),
    ],
)
def test_in_float64_a_carried_difference_changes_nothing(family: str, execution: Execution) -> None:
    policy = policy_of(adapted(family), carry=True)
    reference = AdapterDisabled(policy)
    apart, beside = both_ways(policy, reference, lambda: gradients(step_of(policy, reference), execution))
    assert_close(beside, apart, 1e-12)
    found = hidden(policy)
    if family == "cohere":  # one layer norm for both, which starts over; the sum after it carries
        assert found.difference is None
        return
    assert found.difference is not None
    assert (found.policy - found.reference - found.difference).norm() <= 1e-12 * found.difference.norm()


def in_16_bits(fp8: bool, scale: float) -> Any:
    base = tiny_model("llama", hidden_size=128, intermediate_size=256, num_hidden_layers=6)
    base = loaded_in_fp8(base) if fp8 else base
    for name, tensor in [*base.named_parameters(), *base.named_buffers()]:
        if tensor.dtype == torch.float32 and "scale" not in name and "inv_freq" not in name:
            tensor.data = tensor.data.bfloat16()
    base.config.dtype = torch.bfloat16
    return trained(add_adapter(base, rank=4, seed=0), scale)


def error_of_rewards(policy: Policy, judged: Tensor) -> float:
    reference = AdapterDisabled(policy)
    reference.in_lockstep = True
    scores, ref_logps = step_of(policy, reference).score(MORE, Execution(10**6))
    return float((scores.logps - ref_logps - judged).abs().mean())


@pytest.mark.slow
@pytest.mark.parametrize("fp8", [False, True])
def test_rewards_in_16_bits_are_truer(fp8: bool) -> None:
    """The judge has the same weights in float32, and rounds no input."""
    model = in_16_bits(fp8, 0.0005)
    judge = copy.deepcopy(model)
    for parameter in judge.parameters():
        parameter.data = parameter.data.float() if parameter.dtype == torch.bfloat16 else parameter.data
    with inputs_not_rounded(judge):
        exact = Policy(judge)
        scores, ref_logps = step_of(exact, AdapterDisabled(exact)).score(MORE, Execution(10**6))
    judged = scores.logps - ref_logps
    rounded, carried = (error_of_rewards(policy_of(model, carry=carry), judged) for carry in (False, True))
    assert carried < 0.6 * rounded, (carried, rounded)


@pytest.mark.slow
@pytest.mark.parametrize("room", [EVERYTHING, NOTHING])
@pytest.mark.parametrize("fp8", [False, True])
def test_a_fresh_adapter_differs_by_nothing(fp8: bool, room: Room) -> None:
    policy = policy_of(in_16_bits(fp8, 0.0), carry=True)
    reference = AdapterDisabled(policy)
    _, beside = both_ways(policy, reference, lambda: gradients(step_of(policy, reference), Execution(64, room)))
    assert float(beside[0]) == pytest.approx(0.6931471805599453, abs=1e-7)
    found = hidden(policy)
    assert found.difference is not None and not found.difference.any()


@pytest.mark.slow
def test_recomputed_layers_get_the_difference_too() -> None:
    policy = policy_of(in_16_bits(False, 0.02))
    reference = AdapterDisabled(policy)
    reference.in_lockstep = True
    kept, recomputed = (gradients(step_of(policy, reference), Execution(64, room)) for room in (EVERYTHING, NOTHING))
    assert torch.equal(kept[0], recomputed[0]), "the loss is that of the forward pass"
    assert_close(recomputed[1:], kept[1:], 0.05)


def test_a_reference_with_adapters_of_its_own_is_not_carried() -> None:
    policy = policy_of(adapted("llama"), carry=True)
    reference = SynchronizedAdapter(policy)
    reference.synchronize(0.6)
    assert hidden(policy, LockstepReference(tuple(reference.on()))).difference is None
    assert hidden(policy).difference is not None


@pytest.mark.slow
def test_weights_of_16_bits_carry_it_by_themselves_and_others_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    sixteen, eight, precise = in_16_bits(False, 0.02), in_16_bits(True, 0.02), adapted("llama")
    models: list[Any] = [sixteen, eight, precise]
    assert [policy_of(model).carry for model in models] == [True, False, False]
    assert not Policy(sixteen, fused=FusedLayers(sixteen)).carry, "norms that are not fused do not take it"
    monkeypatch.setenv(DIFFERENCE_VARIABLE, "on")
    assert [policy_of(model).carry for model in models] == [True, True, True]
    monkeypatch.setenv(DIFFERENCE_VARIABLE, "off")
    assert [policy_of(model).carry for model in models] == [False, False, False]
    monkeypatch.setenv(DIFFERENCE_VARIABLE, "yes")
    with pytest.raises(RequestError, match="is 'yes', and can be on or off"):
        policy_of(sixteen)


def random_lockstep(*shape: int) -> Lockstep:
    policy, difference = torch.randn(shape), torch.randn(shape) * 1e-9
    return Lockstep(policy, policy.clone(), (), difference)


def test_functions_that_move_or_scale_elements_carry_the_difference() -> None:
    x: Any = random_lockstep(2, 6, 4)
    d: Tensor = x.difference
    moved: dict[str, tuple[Any, Tensor]] = {
        "view": (x.view(2, 3, 8), d.view(2, 3, 8)),
        "transpose": (x.transpose(0, 1).contiguous(), d.transpose(0, 1)),
        "index": (x[:, 2:4], d[:, 2:4]),
        "chunk": (x.chunk(2, dim=1)[1], d.chunk(2, dim=1)[1]),
        "scale": (x * 0.5, d * 0.5),
        "select": (x.flatten(0, 1).index_select(0, torch.tensor([3, 1])), d.flatten(0, 1)[[3, 1]]),
    }
    for name, (got, expected) in moved.items():
        assert got.difference is not None and torch.equal(got.difference, expected), name
    total: Any = x + random_lockstep(2, 6, 4)
    assert total.difference is not None and 0 < total.difference.abs().max() < 1e-7
    assert torch.relu(x).difference is None
    assert x.view(torch.int32).difference is None, "bits are not numbers"
    assert (x * x).difference is None
    assert (x + 1.0).difference is None


def test_a_difference_is_forgotten_where_a_tensor_is_changed_in_place() -> None:
    x = random_lockstep(3, 4)
    x.add_(1.0)
    assert x.difference is None
    assert torch.equal(x.with_difference().difference, torch.zeros(3, 4))
