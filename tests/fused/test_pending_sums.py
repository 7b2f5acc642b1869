"""Sums of both halves that wait for the norm after them: the same bits, one kernel, and never a stale sum."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import loaded_in_fp8, tiny_model, tiny_pairs
from torch import Tensor, nn

from wishbone.data.batch import TokenizedPair
from wishbone.engine.execution import EVERYTHING, Execution
from wishbone.engine.step import PreferenceStep
from wishbone.fused import lockstep, norm
from wishbone.fused.layers import FusedLayers
from wishbone.fused.lockstep import Lockstep, PendingSum
from wishbone.model.adapter import add_adapter
from wishbone.ops.fp8_quantize import E4M3_ROWS
from wishbone.policy.policy import Policy
from wishbone.preference.metrics import PairMetrics
from wishbone.preference.objective import Objective
from wishbone.preference.scores import LossParameters
from wishbone.reference.reference import AdapterDisabled


def rows(seed: int) -> Tensor:
    return torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(seed)).bfloat16()


def halves(seed: int, *, graph: bool = True) -> Lockstep:
    return Lockstep(rows(seed).requires_grad_(graph), rows(seed) + 2.0**-6 * rows(seed + 9), ())


def normed(x: Any, form: Any = E4M3_ROWS) -> Any:
    return norm._in_lockstep(x, torch.linspace(0.5, 1.5, 16).bfloat16(), 1e-6, 0.0, form)


def test_a_norm_computes_the_sum_before_it_and_all_bits_are_those_without():
    def run(waits: bool) -> list[Tensor]:
        one, other = halves(0), halves(1)
        total: Any = one + other
        assert isinstance(total, PendingSum)
        if not waits:
            assert total.policy is not None  # read, so computed
        out, eight_bits = normed(total)
        assert total.terms is None
        following = out * 0.5 + total
        loss = (following.policy.float() * rows(5).float()).sum()
        grads = torch.autograd.grad(loss, (one.policy, other.policy))
        found = [eight_bits.reference.values, eight_bits.difference.values, following.policy, following.reference]
        return [*grads, total.policy, total.reference, out.policy, out.reference, *(x.float() for x in found)]

    for apart, together in zip(run(False), run(True), strict=True):
        assert torch.equal(apart, together)


def test_one_kernel_computes_sum_and_norm(monkeypatch: pytest.MonkeyPatch):
    calls = []
    fused = norm.sum_rms_norm_quantize_both
    monkeypatch.setattr(norm, "sum_rms_norm_quantize_both", lambda *a, **k: calls.append(1) or fused(*a, **k))
    total = halves(0) + halves(1)
    assert total.shape == (1, 3, 16) and total.dtype == torch.bfloat16 and total.device.type == "cpu"
    assert total.terms is not None, "questions about its form compute nothing"
    normed(total)
    normed(total)
    assert calls == [1], "the second norm finds the sum"
    normed(halves(0) + halves(1), None)
    assert calls == [1], "without rows in 8 bits the sum is read"


def test_a_sum_alone_and_a_norm_alone_have_their_gradients():
    one, other = halves(0), halves(1)
    total = one + other
    out, _ = normed(total)
    for output in (total, out):
        mine = torch.autograd.grad(output.policy.float().square().sum(), one.policy, retain_graph=True)[0]
        again = [halves(0), halves(1)]
        policy = again[0].policy + again[1].policy
        expected = (
            policy
            if output is total
            else nn.functional.rms_norm(policy.float(), (16,), torch.linspace(0.5, 1.5, 16), 1e-6)
        )
        (gradient,) = torch.autograd.grad(expected.float().square().sum(), again[0].policy)
        assert torch.allclose(mine.float(), gradient.float(), rtol=0.05, atol=0.05)


def test_an_addend_that_changes_before_the_sum_is_read_is_an_error():
    one, other = halves(0, graph=False), halves(1, graph=False)
    total = one + other
    other.policy.add_(1)
    with pytest.raises(RuntimeError, match="changed in place after it was added"):
        _ = total.policy
    total = one + other
    other.reference.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place after it was added"):
        normed(total)


def test_a_sum_keeps_the_graph_mode_in_which_it_was_asked_for():
    with torch.no_grad():
        total = halves(0) + halves(1)
    assert not total.policy.requires_grad
    total = halves(0) + halves(1)
    with torch.no_grad():
        normed(total)
        assert total.policy.requires_grad
    with torch.inference_mode():
        assert not isinstance(halves(0) + halves(1), PendingSum)


def test_a_step_of_an_fp8_model_has_the_same_loss_and_gradients_bit_by_bit(monkeypatch: pytest.MonkeyPatch):
    model = add_adapter(loaded_in_fp8(tiny_model("llama", torch.bfloat16, num_hidden_layers=3)), rank=4, seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    policy = Policy(model.train(), fused=FusedLayers(model, norms_everywhere=True))
    reference = AdapterDisabled(policy)
    reference.in_lockstep, policy.carry = True, False
    objective = Objective(("sigmoid",), (1.0,), LossParameters(beta=0.1, label_smoothing=0.0))
    step = PreferenceStep(policy, reference, objective)
    pairs = [TokenizedPair(p + c, p + r, len(p), len(p)) for p, c, r in tiny_pairs(3)]
    calls = []
    fused = norm.sum_rms_norm_quantize_both
    monkeypatch.setattr(norm, "sum_rms_norm_quantize_both", lambda *a, **k: calls.append(1) or fused(*a, **k))

    def run() -> list[Tensor]:
        calls.clear()
        loss = step.backward([pairs], PairMetrics(1.0), Execution(4096, EVERYTHING))
        found = [loss]
        for parameter in model.parameters():
            if parameter.grad is not None:
                found.append(parameter.grad)
                parameter.grad = None
        return found

    run()  # norms learn whose rows are read
    waiting = run()
    assert len(calls) == 5, "both norms of three layers, but for the first one, which no sum comes before"
    monkeypatch.setattr(lockstep, "PendingSum", lambda *_: None)
    apart = run()
    assert not calls and len(apart) > 10
    assert all(torch.equal(one, other) for one, other in zip(waiting, apart, strict=True))
