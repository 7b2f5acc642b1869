"""Replayed passes on a CUDA device: bit by bit those that are run, and run where the state is another."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest
import torch
from recorded_rows import LENGTHS, adapted, assert_same, pairs_of, recorded, results, step_of, with_graphs
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor
from trainer.preference_runs import arguments, chat_pairs, losses

from wishbone import DPOConfig, DPOTrainer
from wishbone.data.batch import PreferenceBatch
from wishbone.engine.oom_retry import backward_that_fits
from wishbone.fused.parts import text_layers
from wishbone.model.adapter import add_adapter
from wishbone.model.fp8 import FP8_ARITHMETIC
from wishbone.policy.cuda_graphs import CudaGraphs
from wishbone.policy.lockstep import LockstepReference
from wishbone.policy.policy import BackboneOutput
from wishbone.preference.metrics import PairMetrics

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("family", ["qwen3", "mistral", "gemma2", "gemma3_text"])
def test_replays_are_the_passes_bit_by_bit(family: str, fp8: bool) -> None:
    if fp8 and FP8_ARITHMETIC.obstacle(torch.device("cuda")):
        pytest.skip("needs FP8")
    step = step_of(adapted(family, fp8=fp8))
    rows = [pairs_of(length, seed) for seed, length in enumerate((384, 640, 256, 640, 384), start=1)]
    expected = [results(step, row) for row in rows]
    graphs = recorded(step)
    for row, wanted in zip(rows, expected, strict=True):
        before = graphs.replays
        assert_same(results(step, row, graphs), wanted)
        assert graphs.replays == before + 3  # the reference's pass, the policy's, and its backward pass
    for parameter in step.policy.model.parameters():  # as an optimizer writes them
        if parameter.requires_grad:
            parameter.data.mul_(1.5)
    changed = results(step, rows[0], graphs)
    assert_same(changed, results(step, rows[0]))
    assert not torch.equal(changed[0], expected[0][0])


def test_shorter_rows_are_padded_and_gradients_add_up() -> None:
    step = step_of(adapted("qwen3"))
    short, long = pairs_of(300, seed=7), pairs_of(640, seed=8)
    expected = [results(step, short), results(step, long)]
    graphs = recorded(step)
    few, most = (step.policy.collate(pairs, with_graphs(graphs)).tokens for pairs in (short[:5], short))
    assert few < 384 <= most
    got = results(step, short, graphs)
    for value, wanted in zip(got, expected[0], strict=True):
        assert (value - wanted).norm() <= 3e-2 * wanted.norm()
    step.backward([long], PairMetrics(0.1), with_graphs(graphs))
    sums = [p.grad for p in step.policy.model.parameters() if p.grad is not None]
    for total, first, second in zip(sums, got[1:], expected[1][1:], strict=True):
        torch.testing.assert_close(total, first + second)
    assert graphs.replays


def test_another_state_is_run_and_not_replayed() -> None:
    step = step_of(adapted("qwen3"))
    row = pairs_of(384, seed=3)
    graphs = recorded(step)
    before, execution = graphs.replays, with_graphs(graphs)
    with torch.no_grad(), step.policy.running(execution):  # the adapter is on, unlike in the pass that was recorded
        step.policy.token_scores(step.policy.collate(row, execution), execution)
    assert graphs.replays == before
    layer = step.policy.causal_lm.base_model.layers[0].self_attn.q_proj
    layer.lora_B["default"].weight.data = layer.lora_B["default"].weight.data * 2
    got = results(step, row, graphs)
    assert graphs.replays == before
    seen = []
    handle = layer.register_forward_hook(lambda *_: seen.append(1))
    results(step, row, graphs)
    assert seen
    handle.remove()
    assert_same(got, results(step, row))


def test_a_backward_pass_out_of_order_is_refused() -> None:
    step = step_of(adapted("qwen3"))
    policy, execution = step.policy, with_graphs(recorded(step))
    with policy.running(execution):
        first, second = (
            policy.token_scores(policy.collate(pairs_of(tokens, seed), execution), execution).logps.sum()
            for tokens, seed in ((384, 1), (640, 2))
        )
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
        graphs = recorded(step)
        assert_same(results(step, row, graphs), expected)
    assert graphs.replays and any(value.grad_fn for value in kept)


def test_one_recording_holds_policy_and_reference() -> None:
    step = step_of(adapted("qwen3"), in_lockstep=True)
    rows = [pairs_of(length, seed=seed) for length in LENGTHS for seed in (1, 2)]
    expected = [results(step, row) for row in rows]
    graphs = recorded(step)
    before = graphs.replays
    for row, one in zip(rows, expected, strict=True):
        assert_same(results(step, row, graphs), one)
    assert graphs.replays == before + 2 * len(rows), "one replay forward and one backward"


@pytest.mark.parametrize("balanced", [False, True])
def test_a_mixture_is_recorded_with_what_its_routers_do(balanced: bool) -> None:
    step = step_of(adapted("qwen3_moe"), in_lockstep=True, balanced=balanced)
    fused = step.policy.fused
    assert fused is not None and fused.launches_by_shape(*text_layers(step.policy.model))
    rows = [pairs_of(length, seed=seed) for length in LENGTHS for seed in (1, 2)]
    expected = [results(step, row) for row in rows]
    graphs = recorded(step)
    before = graphs.replays
    for row, one in zip(rows, expected, strict=True):
        assert_same(results(step, row, graphs), one)
    assert graphs.replays == before + 2 * len(rows)


def test_a_parameter_that_is_used_from_elsewhere_rules_recording_out() -> None:
    step = step_of(adapted("qwen3"))
    parameter = next(p for p in step.policy.model.parameters() if p.requires_grad)
    backbone = step.policy.backbone
    graphs = CudaGraphs(step.policy.model, lambda *row: BackboneOutput(backbone(*row).hidden + 0 * parameter.sum()))
    with pytest.raises(RuntimeError, match="used outside its module"), graphs.recording():
        results(step, pairs_of(384, seed=0), graphs)


def test_a_recording_that_fails_leaves_nothing_behind() -> None:
    step = step_of(adapted("qwen3"))
    row = pairs_of(384, seed=1)
    expected = results(step, row)
    backbone = step.policy.backbone

    def waiting(batch: PreferenceBatch, beside: LockstepReference | None, routed: bool) -> BackboneOutput:
        passed = backbone(batch, beside, routed)
        if torch.cuda.is_current_stream_capturing():
            passed.hidden.sum().item()
        return passed

    numbers = torch.cuda.get_rng_state()
    graphs = CudaGraphs(step.policy.model, waiting)
    with pytest.raises(RuntimeError), graphs.recording():
        results(step, row, graphs)
    graphs.release()
    assert torch.equal(torch.cuda.get_rng_state(), numbers)
    torch.rand(1, device="cuda")
    torch.cuda.empty_cache()  # which is refused while anything is recorded
    assert_same(results(step, row), expected)
    again = recorded(step)
    assert_same(results(step, row, again), expected)
    assert again.replays


def test_a_released_graph_frees_its_memory_and_rows_are_run() -> None:
    step = step_of(adapted("qwen3"))
    row = pairs_of(300, seed=1)
    expected = results(step, row)

    def reserved() -> int:
        step.policy.model.zero_grad()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    recorded(step).release()  # cuBLAS keeps a workspace of its own for the stream that passes are recorded on
    before = reserved()
    graphs = recorded(step)
    assert reserved() > before
    graphs.release()
    assert reserved() <= before
    replays = graphs.replays
    assert_same(results(step, row, graphs), expected)  # not padded either
    assert graphs.replays == replays and graphs.lengths == sorted(LENGTHS)


def test_recordings_are_given_up_where_memory_runs_out(caplog: pytest.LogCaptureFixture) -> None:
    step = step_of(adapted("qwen3"))
    row = pairs_of(640, seed=1)
    expected = results(step, row)
    graphs = recorded(step)
    before = graphs.replays
    parameters = [p for p in step.policy.model.parameters() if p.requires_grad]

    def too_much(loss: Tensor) -> None:
        if not attempts:
            attempts.append(graphs.replays)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        loss.backward()

    attempts: list[int] = []
    with caplog.at_level(logging.WARNING):
        loss, fitted = backward_that_fits(step, [row], PairMetrics(0.1), with_graphs(graphs), too_much, parameters)
    assert attempts == [before + 2] and graphs.replays == before + 2, "replayed first, run the second time"
    assert fitted == with_graphs(None) and "CUDA graphs are dropped" in caplog.text
    assert_same([loss, *(p.grad for p in parameters if p.grad is not None)], expected)


@pytest.mark.parametrize("store", ["off", "in the second run", "from the second epoch on"])
def test_a_run_with_recorded_passes(store: str, tmp_path: Path) -> None:
    runs = []
    epochs = 2 if "epoch" in store else 1
    for wanted in ("off", "on"):
        tokenizer = tiny_tokenizer()
        torch.manual_seed(0)
        model = add_adapter(tiny_model("qwen3", vocab_size=len(tokenizer)).cuda(), rank=4, seed=0)
        options = arguments(tmp_path / wanted, use_cpu=False, bf16=True, learning_rate=1e-3, cuda_graphs=wanted)
        options["reference_store"] = {"off": "off", "in the second run": str(tmp_path / "store.sqlite")}.get(
            store, str(tmp_path / f"{wanted}.sqlite")
        )
        options.update(max_steps=-1, num_train_epochs=epochs)
        trainer = DPOTrainer(model, args=DPOConfig(**options), train_dataset=chat_pairs(24), processing_class=tokenizer)
        trainer.train()
        runs.append((losses(trainer), trainer.execution.graphs))
    (run, none), (replayed, graphs) = runs
    assert none is None and isinstance(graphs, CudaGraphs)
    kinds = epochs  # of passes that are recorded; each is replayed forward and backward, the usual length once more
    in_recordings = 2 * kinds * (len(graphs.lengths) + 1)
    assert graphs.replays >= in_recordings + 2 * 2 * epochs, "two steps of each epoch at least are replayed"
    assert graphs.padded(graphs.lengths[0] - 1) == graphs.lengths[0] - 1, "released: nothing is padded any more"
    assert replayed == pytest.approx(run, rel=2e-2)
    assert replayed[0] == run[0]


def test_what_cannot_be_recorded_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model("qwen3", vocab_size=len(tokenizer)).cuda()  # without adapter
    options = arguments(tmp_path, use_cpu=False, bf16=True, max_steps=2, cuda_graphs="on")
    trainer = DPOTrainer(model, args=DPOConfig(**options), train_dataset=chat_pairs(8), processing_class=tokenizer)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.preference_step is not None and trainer.execution.graphs is None
    assert "No CUDA graph is recorded, because the model itself is trained" in caplog.text
