"""Replayed passes of recurrent layers: rows of other documents than the recorded ones, bit by bit as they are run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_rows import LENGTHS, adapted, assert_same, pairs_of, recorded, results, step_of
from tiny import tiny_model, tiny_tokenizer
from trainer.preference_runs import arguments, chat_pairs, losses
from transformers import CONFIG_MAPPING

from wishbone import DPOConfig, DPOTrainer
from wishbone.data.batch import TokenizedPair
from wishbone.fused.parts import text_layers
from wishbone.model.adapter import add_adapter
from wishbone.policy.cuda_graphs import CudaGraphs

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

FAMILIES: dict[str, dict[str, Any]] = {
    "lfm2": {},
    "qwen3_5_text": {},
    "bamba": {"mamba_d_head": 32},
    "granitemoehybrid": {"mamba_d_head": 32},
    "nemotron_h": {},
    "falcon_h1": {},
    "olmo_hybrid": {},
}
"""Short convolutions, the gated delta rule, Mamba-2; layers without MLP, and with attention beside the recurrence."""
DOCUMENTS = 40


@pytest.mark.parametrize("in_lockstep", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_replays_are_the_passes_bit_by_bit(family: str, in_lockstep: bool) -> None:
    if family not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {family}")
    step = step_of(adapted(family, **FAMILIES[family]), in_lockstep)
    fused = step.policy.fused
    assert step.policy.recurrence.covered and not step.policy.recurrence.in_steps
    assert fused is not None and fused.launches_by_shape(*text_layers(step.policy.model))
    rows = [pairs_of(length, seed) for length in LENGTHS for seed in (1, 2)]
    expected = [results(step, row) for row in rows]
    graphs = recorded(step, DOCUMENTS)
    for row, wanted in zip(rows, expected, strict=True):
        before = graphs.replays
        assert_same(results(step, row, graphs), wanted)
        assert graphs.replays == before + (2 if in_lockstep else 3)


def test_a_row_of_more_pairs_than_there_is_room_for_is_run() -> None:
    step = step_of(adapted("qwen3_5_text"))
    few, many = pairs_of(256, seed=1), [TokenizedPair([5, 6], [5, 7], 1, 1) for _ in range(84)]
    expected = [results(step, row) for row in (few, many)]
    graphs = recorded(step, documents=len(few) + 1)
    before = graphs.replays
    assert_same(results(step, many, graphs), expected[1])
    assert graphs.replays == before, "84 pairs do not fit into the tables of a few"
    assert_same(results(step, few, graphs), expected[0])
    assert graphs.replays > before


@pytest.mark.parametrize("family", ["qwen3_5_text", "lfm2"])
def test_a_run_with_recorded_passes(family: str, tmp_path: Path) -> None:
    runs = []
    for wanted in ("off", "on"):
        tokenizer = tiny_tokenizer()
        torch.manual_seed(0)
        model = add_adapter(tiny_model(family, vocab_size=len(tokenizer)).cuda(), rank=4, seed=0)
        options = arguments(tmp_path / wanted, use_cpu=False, bf16=True, learning_rate=1e-3, cuda_graphs=wanted)
        options.update(max_steps=-1, num_train_epochs=1)
        trainer = DPOTrainer(model, args=DPOConfig(**options), train_dataset=chat_pairs(24), processing_class=tokenizer)
        trainer.train()
        runs.append((losses(trainer), trainer.execution.graphs))
    (run, none), (replayed, graphs) = runs
    assert none is None and isinstance(graphs, CudaGraphs)
    assert graphs.replays >= 2 * (len(graphs.lengths) + 1) + 4, "two steps at least are replayed"
    assert replayed == pytest.approx(run, rel=2e-2)
    assert replayed[0] == run[0]


def test_scans_without_kernels_are_not_recorded_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tiny_tokenizer()
    model = add_adapter(tiny_model("jamba", vocab_size=len(tokenizer)).cuda(), rank=4, seed=0)
    options = arguments(tmp_path, use_cpu=False, bf16=True, max_steps=2, cuda_graphs="on")
    trainer = DPOTrainer(model, args=DPOConfig(**options), train_dataset=chat_pairs(8), processing_class=tokenizer)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.execution.graphs is None
    assert "No CUDA graph is recorded" in caplog.text and "mamba_selective_scan" in caplog.text
