"""Sinks, slopes by distance, and families that hand no keyword arguments down, in rows with shared prefixes."""

from __future__ import annotations

import pytest
import torch
from equivalence.test_model_families import gradients, pairs_of, textbook_dpo, with_trained_adapter
from tiny import tiny_model

from wishbone.engine.execution import EVERYTHING, NOTHING, Execution
from wishbone.engine.step import PreferenceStep
from wishbone.policy.activations import allow_recompute
from wishbone.policy.capability import choose_form
from wishbone.policy.policy import Policy
from wishbone.preference.metrics import PairMetrics
from wishbone.preference.objective import Objective
from wishbone.reference.reference import AdapterDisabled

BY_MASK = ["stablelm", "nemotron", "bloom", "mpt"]
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5}


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        *((family, torch.float64) for family in (*BY_MASK, "gpt_oss")),
        ("gpt_oss", torch.float32),
        ("mpt", torch.float32),
    ],
)
@pytest.mark.slow
def test_step_equals_two_plain_sequences(family: str, dtype: torch.dtype) -> None:
    sizes = {"num_attention_heads": 6, "hidden_size": 48} if family in ("bloom", "mpt") else {}  # slopes of two kinds
    model = with_trained_adapter(tiny_model(family, dtype=dtype, **sizes), dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):
            parameter.requires_grad_()
    pairs = pairs_of(model.get_base_model())
    expected_loss = textbook_dpo(model, pairs, beta=0.1)
    expected_loss.backward()
    expected = gradients(model)
    capability = choose_form(model)
    assert capability.form == "shared_prefix" and capability.reason is None
    assert capability.layout_as_mask == (family in BY_MASK)
    model.train()
    allow_recompute(model.get_base_model())
    model.enable_input_require_grads()
    for room in (EVERYTHING, NOTHING):
        policy = Policy(model, layout_as_mask=capability.layout_as_mask)
        step = PreferenceStep(policy, AdapterDisabled(policy), Objective())
        loss = step.backward([pairs], PairMetrics(0.1), Execution(60, room))
        gradient = gradients(model)
        assert float(loss) == pytest.approx(expected_loss.item(), rel=TOLERANCE[dtype])
        assert (gradient - expected).norm() <= TOLERANCE[dtype] * expected.norm()
