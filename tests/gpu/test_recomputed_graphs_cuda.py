"""Recorded passes whose layers are recomputed, and whose layer inputs wait in host memory; lengths recorded late."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from recorded_rows import LENGTHS, adapted, assert_same, pairs_of, recorded, results, step_of
from tiny import tiny_model, tiny_tokenizer
from trainer.preference_runs import arguments, chat_pairs, losses

from wishbone import DPOConfig, DPOTrainer, FastLanguageModel
from wishbone.data.batch import PreferenceBatch
from wishbone.engine.execution import EVERYTHING, NOTHING, Execution, Room
from wishbone.model.fp8 import FP8_ARITHMETIC
from wishbone.model.host_embedding import keep_embedding_on_host
from wishbone.policy import offload
from wishbone.policy.activations import allow_recompute
from wishbone.policy.cuda_graphs import CudaGraphs
from wishbone.policy.lockstep import LockstepReference
from wishbone.policy.policy import BackboneOutput

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LAYERS = 6
MOST = max(LENGTHS)
TREATMENTS = {
    "kept": Execution(MOST, EVERYTHING),
    "recomputed": Execution(MOST, NOTHING),
    "some recomputed": Execution(MOST, Room(MOST * (1.0 + 3.5), 1.0, 1.0)),  # 3 of 6 layers of the longest row are kept
    "offloaded": Execution(MOST, NOTHING, "always"),
    "offloaded, in pieces": Execution(MOST, NOTHING, "always", head_chunk=2**16, tile_tokens=128),
    "offloaded where too long": Execution(MOST, Room(MOST - 1.0, 1.0, 1.0), "as needed"),
}
TREATED = [name for name in TREATMENTS if name != "kept"]


@pytest.fixture(autouse=True)
def small_tensors_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "MINIMUM_BYTES", 2**12)


def treated(family: str, *, fp8: bool = False, **sizes: Any) -> PeftModel:
    if fp8 and FP8_ARITHMETIC.obstacle(torch.device("cuda")):
        pytest.skip("needs FP8")
    model = adapted(family, fp8=fp8, **{"num_hidden_layers": LAYERS} | sizes)
    allow_recompute(model.get_base_model())
    return model


@pytest.mark.parametrize("in_lockstep", [False, True])
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("treatment", TREATED)
def test_replays_are_the_passes_bit_by_bit(treatment: str, fp8: bool, in_lockstep: bool) -> None:
    step, execution = step_of(treated("llama", fp8=fp8), in_lockstep), TREATMENTS[treatment]
    rows = [pairs_of(length, seed) for seed, length in enumerate((384, 640, 256, 640, 384), start=1)]
    expected = [results(step, row, execution=execution) for row in rows]
    if not (fp8 or in_lockstep or execution.in_pieces):  # there a layer that runs again, or in pieces, rounds otherwise
        assert_same(expected[0], results(step, rows[0], execution=TREATMENTS["kept"]))
    graphs = recorded(step, execution=execution)
    for row, wanted in zip(rows, expected, strict=True):
        before = graphs.replays
        assert_same(results(step, row, graphs, execution), wanted)
        assert graphs.replays == before + (2 if in_lockstep else 3)


@pytest.mark.parametrize("treatment", ["recomputed", "offloaded"])
@pytest.mark.parametrize("family", ["qwen3", "gemma2", "qwen3_moe", "qwen3_5_text"])
def test_other_families_are_recorded_as_well(family: str, treatment: str) -> None:
    sizes = {"num_hidden_layers": 2} if family == "qwen3_5_text" else {}  # one layer of each type
    step, execution = step_of(treated(family, **sizes), in_lockstep=True), TREATMENTS[treatment]
    rows = [pairs_of(length, seed) for seed, length in enumerate((384, 640, 640), start=1)]
    expected = [results(step, row, execution=execution) for row in rows]
    graphs = recorded(step, 40, execution)
    for row, wanted in zip(rows, expected, strict=True):
        before = graphs.replays
        assert_same(results(step, row, graphs, execution), wanted)
        assert graphs.replays == before + 2


@pytest.mark.parametrize("in_lockstep", [False, True])
def test_an_embedding_in_host_memory_is_read_before_each_replay(in_lockstep: bool) -> None:
    model = treated("llama")
    keep_embedding_on_host(model.get_base_model())
    step, execution = step_of(model, in_lockstep), TREATMENTS["offloaded"]
    rows = [pairs_of(length, seed) for seed, length in enumerate((640, 384, 640, 384), start=1)]
    expected = [results(step, row, execution=execution) for row in rows]
    graphs = recorded(step, execution=execution)
    for row, wanted in zip(rows, expected, strict=True):
        before = graphs.replays
        assert_same(results(step, row, graphs, execution), wanted)
        assert graphs.replays > before
    assert not torch.equal(expected[0][0], expected[2][0])


def test_recordings_take_what_the_treatment_leaves() -> None:
    taken = {}
    for treatment in ("kept", "recomputed", "offloaded"):
        step = step_of(treated("llama", hidden_size=512, intermediate_size=1024, num_hidden_layers=24), True)
        results(step, pairs_of(640, seed=1), execution=TREATMENTS[treatment])
        step.policy.model.zero_grad()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        graphs = recorded(step, execution=TREATMENTS[treatment], lengths=[640])
        torch.cuda.empty_cache()
        taken[treatment] = torch.cuda.memory_reserved() - before
        graphs.release()
        del step, graphs
        torch.cuda.empty_cache()
    inputs = 24 * 640 * 512 * 2
    print("bytes taken by recordings", taken, "inputs of layers", inputs)
    assert taken["kept"] > taken["recomputed"] + 5 * inputs
    assert taken["recomputed"] >= taken["offloaded"] + inputs // 2


def test_planned_lengths_are_recorded_when_the_first_row_of_them_comes() -> None:
    step, execution = step_of(treated("llama"), in_lockstep=True), TREATMENTS["offloaded"]
    rows = [pairs_of(length, seed) for seed, length in enumerate((384, 640, 384, 256), start=1)]
    expected = [results(step, row, execution=execution) for row in rows]
    graphs = recorded(step, execution=execution, lengths=[640])
    graphs.plan([256, 384, 640], worth=640)
    assert graphs.recorded == 1 and graphs.padded(300) == 384 and graphs.padded(20) == 256
    for row, wanted, lengths in zip(rows, expected, (2, 2, 2, 3), strict=True):
        before = graphs.replays
        assert_same(results(step, row, graphs, execution), wanted)
        assert graphs.recorded == lengths and graphs.replays == before + 2
    step.policy.model.eval()
    graphs.plan([128, 256, 384, 640], worth=640)
    results(step, pairs_of(128, seed=1), graphs, execution)
    assert graphs.recorded == 3, "rows that are not trained on are not recorded"


def test_a_length_that_cannot_be_recorded_in_training_is_run(caplog: pytest.LogCaptureFixture) -> None:
    step, execution = step_of(treated("llama"), in_lockstep=True), TREATMENTS["recomputed"]
    rows = [pairs_of(length, seed) for seed, length in enumerate((384, 640, 384), start=1)]
    expected = [results(step, row, execution=execution) for row in rows]
    backbone = step.policy.backbone

    def waiting(batch: PreferenceBatch, beside: LockstepReference | None, routed: bool) -> BackboneOutput:
        passed = backbone(batch, beside, routed)
        if torch.cuda.is_current_stream_capturing():
            passed.hidden.policy.sum().item()  # type: ignore[attr-defined]
        return passed

    graphs = CudaGraphs(step.policy.model, waiting)
    graphs.plan([384, 640], worth=640)
    numbers = torch.cuda.get_rng_state()
    with caplog.at_level(logging.WARNING):
        for row, wanted in zip(rows, expected, strict=True):
            assert_same(results(step, row, graphs, execution), wanted)
    assert caplog.text.count("CUDA graphs are dropped, and rows are run") == 1
    assert not graphs.replays and graphs.padded(300) == 300
    assert torch.equal(torch.cuda.get_rng_state(), numbers)
    torch.rand(1, device="cuda")


def test_a_run_is_recorded_by_itself_where_that_pays(tmp_path: Path) -> None:
    runs = []
    for wanted in ("off", "auto"):
        tokenizer = tiny_tokenizer()
        torch.manual_seed(0)
        model = tiny_model("qwen3", vocab_size=len(tokenizer), num_hidden_layers=8).cuda()
        options = arguments(tmp_path / wanted, use_cpu=False, bf16=True, learning_rate=1e-3, cuda_graphs=wanted)
        options.update(activations="offload", max_steps=40, save_strategy="steps", save_steps=24)
        options.update(per_device_train_batch_size=2, gradient_accumulation_steps=1)
        trainer = _trainer(model, options, tokenizer)
        trainer.train()
        runs.append((losses(trainer), trainer.execution.graphs))
    (run, none), (replayed, graphs) = runs
    assert none is None and isinstance(graphs, CudaGraphs) and graphs.replays > 40
    assert replayed[:10] == pytest.approx(run[:10], rel=3e-2)
    torch.manual_seed(0)
    model = tiny_model("qwen3", vocab_size=len(tokenizer), num_hidden_layers=8).cuda()
    again = _trainer(model, options, tokenizer)
    again.train(resume_from_checkpoint=str(tmp_path / "auto" / "checkpoint-24"))
    resumed = again.execution.graphs
    assert isinstance(resumed, CudaGraphs) and (resumed.lengths, resumed.worth) == (graphs.lengths, graphs.worth)
    assert losses(again)[-16:] == pytest.approx(replayed[-16:], rel=1e-3)


def _trainer(model: Any, options: dict[str, Any], tokenizer: Any) -> DPOTrainer:
    from peft import LoraConfig

    adapter = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    args = DPOConfig(**options)
    return DPOTrainer(model, args=args, train_dataset=chat_pairs(24), processing_class=tokenizer, peft_config=adapter)


def test_four_bits_in_the_smallest_memory_are_recorded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("bitsandbytes")
    directory, tokenizer = tmp_path / "model", tiny_tokenizer()
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8}
    tiny_model("llama", vocab_size=len(tokenizer), **sizes).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    runs = []
    for wanted in ("off", "on"):
        model, _ = FastLanguageModel.from_pretrained(str(directory), load_in_4bit=True, offload_embedding=True)
        model = FastLanguageModel.get_peft_model(model, r=8, use_gradient_checkpointing="unsloth", random_state=0)
        options = arguments(tmp_path / wanted, use_cpu=False, bf16=True, learning_rate=1e-3, cuda_graphs=wanted)
        options.update(max_steps=12, per_device_train_batch_size=1, token_budget=2048)
        trainer = DPOTrainer(model, args=DPOConfig(**options), train_dataset=chat_pairs(24), processing_class=tokenizer)
        with caplog.at_level(logging.INFO, logger="wishbone"):
            trainer.train()
        runs.append((losses(trainer), trainer.execution.graphs))
    (run, none), (replayed, graphs) = runs
    assert none is None and isinstance(graphs, CudaGraphs), caplog.text
    assert graphs.replays > 20 and "were recorded in" in caplog.text
    assert replayed == pytest.approx(run, rel=3e-2)
