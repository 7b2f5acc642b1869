"""Pairs of texts on a model with a chat template are trained as turns, unless a person or the texts say otherwise."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from wishbone.config.schema import DataConfig, ModelConfig, RunConfig
from wishbone.model.embedded import embedded_directory
from wishbone.report.answers import question_from_text
from wishbone.run.prepare_data import prepare_data, trained_template


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(embedded_directory())  # type: ignore[no-any-return]


def config(tmp_path: Path, rows: list[dict[str, Any]], **data: Any) -> RunConfig:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return RunConfig(model=ModelConfig(name="smollm2-135m-instruct"), data=DataConfig(train=str(path), **data))


TEXTS = [{"prompt": "Name a lake.", "chosen": "Baikal", "rejected": "Oslo"}]
TURNS = [{"prompt": [{"role": "user", "content": "Name a lake."}], "chosen": "Baikal", "rejected": "Oslo"}]


def _ids(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    pairs, _, _ = prepare_data(config, tokenizer)
    return [pairs[0][name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")]


def test_texts_are_turns_and_one_line_says_so(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        texts = _ids(config(tmp_path, TEXTS), tokenizer)
    assert sum("one user turn and one answer" in line for line in caplog.messages) == 1
    assert texts == _ids(config(tmp_path, TURNS), tokenizer)
    prompted = {"system_prompt": "Be brief."}
    assert _ids(config(tmp_path, TEXTS, **prompted), tokenizer) == _ids(config(tmp_path, TURNS, **prompted), tokenizer)


def test_texts_stay_texts_where_that_is_asked_for_or_they_are_rendered(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    raw = _ids(config(tmp_path, TEXTS, template="none"), tokenizer)
    assert tokenizer.decode(raw[0]) == "Name a lake."
    rendered: Any = tokenizer.apply_chat_template(TURNS[0]["prompt"], tokenize=False, add_generation_prompt=True)
    ids = _ids(config(tmp_path, [TEXTS[0] | {"prompt": rendered}]), tokenizer)
    assert tokenizer.decode(ids[0]) == rendered
    assert any("hold tokens of the model's chat template" in line for line in caplog.messages)


def test_the_form_that_was_trained_is_recorded_and_asked_in(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    for template, form in (("auto", "chat"), ("none", "none")):
        asked = config(tmp_path, TEXTS, template=template)
        pairs, _, _ = prepare_data(asked, tokenizer)
        assert trained_template(pairs, asked.data.template) == form
        question = question_from_text("Name a lake.", tokenizer, as_text=form == "none")
        assert question.ids == pairs[0]["prompt_ids"]
