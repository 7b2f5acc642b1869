"""In FP8 nothing is stored of the reference unless the user asks, and then one line says what that costs."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from tiny import loaded_in_fp8, tiny_model, tiny_tokenizer

from trainer.preference_runs import arguments, chat_pairs
from wishbone import DPOConfig, DPOTrainer
from wishbone.model.adapter import add_adapter
from wishbone.reference.cache import STORE_VARIABLE, CachedReference
from wishbone.reference.reference import AdapterDisabled


def test_a_store_is_kept_only_where_asked_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = tiny_tokenizer()
    plain = tiny_model("llama", vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128)
    model = add_adapter(loaded_in_fp8(plain.to(torch.bfloat16)), rank=4, seed=0)

    def reference_of(**options: str) -> object:
        caplog.clear()
        trainer = DPOTrainer(
            model,
            args=DPOConfig(**arguments(tmp_path, bf16=True, **options)),
            train_dataset=chat_pairs(8),
            processing_class=tokenizer,
        )
        assert trainer.preference_step is not None
        return trainer.preference_step.reference

    monkeypatch.delenv(STORE_VARIABLE, raising=False)
    with caplog.at_level(logging.INFO):
        own = reference_of()
        assert isinstance(own, AdapterDisabled) and own.in_lockstep
        assert "are not stored: in 8 bits" in caplog.text
        monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "references.sqlite"))
        assert isinstance(reference_of(), CachedReference)
        assert f"are stored, as {STORE_VARIABLE} asks. In FP8" in caplog.text
        assert isinstance(reference_of(reference_store="off"), AdapterDisabled)
        assert "stored" not in caplog.text
