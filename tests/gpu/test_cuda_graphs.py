"""Replayed passes on a CUDA device: bit by bit those that are run, and run where the state is another."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor
from trainer.preference_runs import arguments, chat_pairs, losses
from transformers import TrainerCallback

from wishbone import DPOConfig, DPOTrainer
from wishbone.data.batch import PreferenceBatch, TokenizedPair
from wishbone.engine.oom_retry import backward_that_fits
from wishbone.engine.step import PreferenceStep
from wishbone.fused.layers import FusedLayers
from wishbone.model.adapter import add_adapter
from wishbone.model.fp8 import fp8_obstacle, quantize_to_fp8
from wishbone.policy.cuda_graphs import RecordedPasses
from wishbone.policy.policy import Policy
from wishbone.preference.metrics import PairMetrics
from wishbone.preference.objective import Objective
from wishbone.reference.reference import AdapterDisabled

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LENGTHS = (640, 384, 256)


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


def adapted(family: str, *, fp8: bool = False) -> PeftModel:
    model = tiny_model(family, hidden_size=64, intermediate_size=128).to("cuda", torch.bfloat16)
    model = add_adapter(quantize_to_fp8(model) if fp8 else model, rank=4, alpha=8, seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).cuda() * 0.1
    return model.train()


def step_of(model: PeftModel) -> PreferenceStep:
    policy = Policy(model, row_multiple=128, fused=FusedLayers(model))
    return PreferenceStep(policy, AdapterDisabled(policy), Objective(), token_budget=max(LENGTHS))


def results(step: PreferenceStep, pairs: list[TokenizedPair]) -> list[Tensor]:
    step.policy.model.zero_grad()
    loss = step.backward([pairs], PairMetrics(0.1))
    return [loss, *(p.grad.clone() for p in step.policy.model.parameters() if p.grad is not None)]


def recorded(step: PreferenceStep) -> RecordedPasses:
    passes = step.policy.recorded = RecordedPasses(step.policy.model, step.policy.backbone)
    with passes.recording():
        for length in LENGTHS:
            results(step, pairs_of(length, seed=0))
    step.policy.model.zero_grad()
    assert passes.lengths == sorted(LENGTHS)
    return passes


class AtTheEnd(TrainerCallback):
    """Calls a function before a run ends."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._function()


def assert_same(got: list[Tensor], expected: list[Tensor]) -> None:
    assert len(got) == len(expected) > 1
    assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("family", ["qwen3", "mistral", "gemma2", "gemma3_text"])
def test_replays_are_the_passes_bit_by_bit(family: str, fp8: bool) -> None:
    if fp8 and fp8_obstacle(torch.device("cuda")):
        pytest.skip("needs FP8")
    step = step_of(adapted(family, fp8=fp8))
    rows = [pairs_of(length, seed) for seed, length in enumerate((384, 640, 256, 640, 384), start=1)]
    expected = [results(step, row) for row in rows]
    passes = recorded(step)
    for row, wanted in zip(rows, expected, strict=True):
        before = passes.replays
        assert_same(results(step, row), wanted)
        assert passes.replays == before + 3  # the reference's pass, the policy's, and its backward pass
    for parameter in step.policy.model.parameters():  # as an optimizer writes them
        if parameter.requires_grad:
            parameter.data.mul_(1.5)
    changed = results(step, rows[0])
    step.policy.recorded = None
    assert_same(changed, results(step, rows[0]))
    assert not torch.equal(changed[0], expected[0][0])


def test_shorter_rows_are_padded_and_gradients_add_up() -> None:
    step = step_of(adapted("qwen3"))
    short, long = pairs_of(300, seed=7), pairs_of(640, seed=8)
    expected = [results(step, short), results(step, long)]
    passes = recorded(step)
    assert step.policy.collate(short[:5]).tokens < 384 <= step.policy.collate(short).tokens
    got = results(step, short)
    for value, wanted in zip(got, expected[0], strict=True):
        assert (value - wanted).norm() <= 3e-2 * wanted.norm()
    step.backward([long], PairMetrics(0.1))
    sums = [p.grad for p in step.policy.model.parameters() if p.grad is not None]
    for total, first, second in zip(sums, got[1:], expected[1][1:], strict=True):
        torch.testing.assert_close(total, first + second)
    assert passes.replays


def test_another_state_is_run_and_not_replayed() -> None:
    step = step_of(adapted("qwen3"))
    row = pairs_of(384, seed=3)
    passes = recorded(step)
    before = passes.replays
    with torch.no_grad(), step.policy.running():  # the adapter is on, unlike in the pass that was recorded
        step.policy.token_scores(step.policy.collate(row))
    assert passes.replays == before
    layer = step.policy.causal_lm.base_model.layers[0].self_attn.q_proj
    layer.lora_B["default"].weight.data = layer.lora_B["default"].weight.data * 2
    got = results(step, row)
    assert passes.replays == before
    seen = []
    handle = layer.register_forward_hook(lambda *_: seen.append(1))
    results(step, row)
    assert seen
    handle.remove()
    step.policy.recorded = None
    assert_same(got, results(step, row))


def test_a_backward_pass_out_of_order_is_refused() -> None:
    step = step_of(adapted("qwen3"))
    recorded(step)
    policy = step.policy
    with policy.running():
        first = policy.token_scores(policy.collate(pairs_of(384, seed=1))).logps.sum()
        second = policy.token_scores(policy.collate(pairs_of(640, seed=2))).logps.sum()
        second.backward()
        with pytest.raises(RuntimeError, match="must follow"):
            first.backward()


def test_a_graph_that_someone_keeps_is_no_obstacle() -> None:
    step = step_of(adapted("qwen3"))
    row = pairs_of(384, seed=1)
    kept = [parameter.clone() for parameter in step.policy.model.parameters()]
    expected = results(step, row)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        passes = recorded(step)
        assert_same(results(step, row), expected)
    assert passes.replays and any(value.grad_fn for value in kept)


def test_a_parameter_that_is_used_from_elsewhere_rules_recording_out() -> None:
    step = step_of(adapted("qwen3"))
    parameter = next(p for p in step.policy.model.parameters() if p.requires_grad)
    backbone = step.policy.backbone
    passes = RecordedPasses(step.policy.model, lambda batch: backbone(batch) + 0 * parameter.sum())
    step.policy.recorded = passes
    with pytest.raises(RuntimeError, match="somewhere else"), passes.recording():
        results(step, pairs_of(384, seed=0))


def test_a_recording_that_fails_leaves_nothing_behind() -> None:
    step = step_of(adapted("qwen3"))
    row = pairs_of(384, seed=1)
    expected = results(step, row)
    backbone = step.policy.backbone

    def waiting(batch: PreferenceBatch) -> Tensor:
        hidden = backbone(batch)
        if torch.cuda.is_current_stream_capturing():
            hidden.sum().item()
        return hidden

    numbers = torch.cuda.get_rng_state()
    step.policy.recorded = RecordedPasses(step.policy.model, waiting)
    with pytest.raises(RuntimeError), step.policy.recorded.recording():
        results(step, row)
    step.policy.recorded = None
    assert torch.equal(torch.cuda.get_rng_state(), numbers)
    torch.rand(1, device="cuda")
    torch.cuda.empty_cache()  # which is refused while anything is recorded
    assert_same(results(step, row), expected)
    assert recorded(step).replays
    assert_same(results(step, row), expected)


def test_recordings_are_given_up_where_memory_runs_out(caplog: pytest.LogCaptureFixture) -> None:
    step = step_of(adapted("qwen3"))
    row = pairs_of(640, seed=1)
    expected = results(step, row)
    passes = recorded(step)
    parameters = [p for p in step.policy.model.parameters() if p.requires_grad]

    def too_much(loss: Tensor) -> None:
        if step.policy.recorded is passes:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        loss.backward()

    with caplog.at_level(logging.WARNING):
        loss = backward_that_fits(step, [row], PairMetrics(0.1), too_much, parameters)
    assert step.policy.recorded is None and "passes are run" in caplog.text
    assert_same([loss, *(p.grad for p in parameters if p.grad is not None)], expected)


def test_a_run_with_recorded_passes(tmp_path: Path) -> None:
    runs = []
    for wanted in ("off", "on"):
        tokenizer = tiny_tokenizer()
        torch.manual_seed(0)
        model = add_adapter(tiny_model("qwen3", vocab_size=len(tokenizer)).cuda(), rank=4, seed=0)
        options = arguments(tmp_path / wanted, use_cpu=False, bf16=True, learning_rate=1e-3, cuda_graphs=wanted)
        trainer = DPOTrainer(model, args=DPOConfig(**options), train_dataset=chat_pairs(24), processing_class=tokenizer)
        assert trainer.preference_step is not None
        policy, seen = trainer.preference_step.policy, []
        trainer.add_callback(AtTheEnd(lambda policy=policy, seen=seen: seen.append(policy.recorded)))
        trainer.train()
        assert policy.recorded is None
        runs.append((losses(trainer), seen[0]))
    (run, none), (replayed, passes) = runs
    assert none is None and passes is not None and passes.replays > 3 * len(passes.lengths)
    assert replayed == pytest.approx(run, rel=2e-2)
    assert replayed[0] == run[0]


def test_what_cannot_be_recorded_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tiny_tokenizer()
    model = add_adapter(tiny_model("gpt_neox", vocab_size=len(tokenizer)).cuda(), rank=4, seed=0)
    options = arguments(tmp_path, use_cpu=False, bf16=True, max_steps=2, cuda_graphs="on")
    trainer = DPOTrainer(model, args=DPOConfig(**options), train_dataset=chat_pairs(8), processing_class=tokenizer)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.preference_step is not None and trainer.preference_step.policy.recorded is None
    assert "No pass is recorded" in caplog.text
