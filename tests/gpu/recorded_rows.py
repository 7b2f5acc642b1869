"""Rows of random pairs, run and replayed, for the tests of recorded passes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from tiny import loaded_in_fp8, tiny_model
from torch import Tensor

from wishbone.data.batch import TokenizedPair
from wishbone.engine.execution import Execution
from wishbone.engine.step import PreferenceStep
from wishbone.fused.layers import FusedLayers
from wishbone.model.adapter import add_adapter
from wishbone.policy.cuda_graphs import CudaGraphs
from wishbone.policy.policy import Policy
from wishbone.preference.load_balancing import LoadBalancing
from wishbone.preference.metrics import PairMetrics
from wishbone.preference.objective import Objective
from wishbone.reference.reference import AdapterDisabled

LENGTHS = (640, 384, 256)
WHOLE = Execution(token_budget=max(LENGTHS))
"""Rows whose layers are as the model's owner set them."""


def pairs_of(tokens: int, seed: int) -> list[TokenizedPair]:
    """Random pairs that fill a row of `tokens`, but for less than 128 of them."""
    rng = random.Random(seed)
    draw = lambda count: [rng.randrange(3, 120) for _ in range(count)]  # noqa: E731
    pairs, left = [], tokens
    while left > 60:
        prompt, chosen, rejected = draw(rng.randint(2, 20)), draw(rng.randint(2, 19)), draw(rng.randint(2, 19))
        pairs.append(TokenizedPair(prompt + chosen, prompt + rejected, len(prompt), len(prompt)))
        left -= pairs[-1].row_tokens
    return pairs


def adapted(family: str, *, fp8: bool = False, **sizes: Any) -> PeftModel:
    sizes = {"hidden_size": 64, "intermediate_size": 128} | sizes
    model = tiny_model(family, **sizes).to("cuda", torch.bfloat16)
    model = add_adapter(loaded_in_fp8(model) if fp8 else model, rank=4, alpha=8, seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).cuda() * 0.1
    return model.train()


def step_of(model: PeftModel, in_lockstep: bool = False, balanced: bool = False) -> PreferenceStep:
    policy = Policy(model, row_multiple=128, fused=FusedLayers(model))
    reference = AdapterDisabled(policy)
    reference.in_lockstep = in_lockstep
    return PreferenceStep(policy, reference, Objective(load_balancing=LoadBalancing(0.5, 2) if balanced else None))


def results(
    step: PreferenceStep,
    pairs: list[TokenizedPair],
    graphs: CudaGraphs | None = None,
    execution: Execution = WHOLE,
) -> list[Tensor]:
    """Loss and gradients of one row, replayed where there are graphs."""
    step.policy.model.zero_grad()
    loss = step.backward([pairs], PairMetrics(0.1), replace(execution, graphs=graphs))
    return [loss, *(p.grad.clone() for p in step.policy.model.parameters() if p.grad is not None)]


def with_graphs(graphs: CudaGraphs | None) -> Execution:
    return replace(WHOLE, graphs=graphs)


def recorded(
    step: PreferenceStep,
    documents: int = 0,
    execution: Execution = WHOLE,
    lengths: Sequence[int] = LENGTHS,
) -> CudaGraphs:
    graphs = CudaGraphs(step.policy.model, step.policy.backbone, documents)
    with graphs.recording():
        for length in lengths:
            results(step, pairs_of(length, seed=0), graphs, execution)
    step.policy.model.zero_grad()
    assert graphs.lengths == sorted(lengths)
    return graphs


def assert_same(got: list[Tensor], expected: list[Tensor]) -> None:
    assert len(got) == len(expected) > 1
    assert all(map(torch.equal, got, expected))
