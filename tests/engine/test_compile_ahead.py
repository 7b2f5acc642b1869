"""The pass that tells which kernels a step needs changes nothing, and is short."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import tiny_model

from wishbone.engine.compile_ahead import compile_ahead, run_through
from wishbone.engine.step import PreferenceStep
from wishbone.fused.layers import FusedLayers
from wishbone.model.adapter import add_adapter
from wishbone.policy.policy import Policy
from wishbone.preference.objective import Objective
from wishbone.reference.reference import AdapterDisabled, NoReference


def step_of(family: str, *, in_lockstep: bool, **options: Any) -> PreferenceStep:
    model = add_adapter(tiny_model(family, **options), rank=4, alpha=4, seed=0)
    policy = Policy(model, fused=FusedLayers(model, norms_everywhere=True))
    if not in_lockstep:
        return PreferenceStep(policy, NoReference(), Objective())
    reference = AdapterDisabled(policy)
    reference.in_lockstep = True
    return PreferenceStep(policy, reference, Objective())


@pytest.mark.parametrize(
    ("family", "in_lockstep", "layers", "ran"),
    [("llama", True, 4, [0, 1]), ("llama", False, 4, [0, 1]), ("gemma3_text", True, 2, [0, 1])],
)
def test_few_layers_run_and_the_model_stays_as_it_was(
    family: str, in_lockstep: bool, layers: int, ran: list[int]
) -> None:
    step = step_of(family, in_lockstep=in_lockstep, num_hidden_layers=layers)
    model, config = step.policy.model, step.policy.causal_lm.config
    model.train()
    seen: set[int] = set()
    hooks = [
        layer.register_forward_pre_hook(lambda *_, index=i: seen.add(index))
        for i, layer in enumerate(step.policy.causal_lm.model.layers)
    ]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.random.get_rng_state()
    run_through(step)
    assert sorted(seen) == ran and config.num_hidden_layers == layers and model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for hook in hooks:
        hook.remove()


def test_a_model_that_cannot_run_so_is_left_to_the_trials(caplog: pytest.LogCaptureFixture) -> None:
    step = step_of("llama", in_lockstep=False)

    def forward(*_: Any, **__: Any) -> Any:
        raise ValueError("needs pictures")

    layer = step.policy.causal_lm.model.layers[0].mlp
    layer.forward = forward
    with caplog.at_level("DEBUG", logger="wishbone"):
        run_through(step)
    assert "needs pictures" in caplog.text


def test_nothing_is_compiled_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    step = step_of("llama", in_lockstep=True)
    called: list[Any] = []
    monkeypatch.setattr(step, "backward", called.append)
    compile_ahead(step)
    assert not called
