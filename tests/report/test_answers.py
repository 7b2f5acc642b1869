"""The answers of a tiny model against a decoding loop written here, on merged weights instead of PEFT's switch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from learned import Learned
from tiny import tiny_model, tiny_tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wishbone.data.tokenize import tokenize_pairs
from wishbone.errors import RequestError
from wishbone.report.answers import (
    Answer,
    Question,
    answer_before_and_after,
    learned_weights,
    question_from_text,
    questions_from_pairs,
    write_answers,
)

LENGTH = 12


@torch.no_grad()
def likeliest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: list[int], longest: int = LENGTH) -> str:
    written: list[int] = []
    while len(written) < longest:
        token = int(model(torch.tensor([ids + written])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            return tokenizer.decode(written, skip_special_tokens=True).strip()
        written.append(token)
    return tokenizer.decode(written, skip_special_tokens=True).strip() + " …"


def questions(tokenizer: PreTrainedTokenizerBase) -> list[Question]:
    return [question_from_text(text, tokenizer) for text in ("What is the capital of France?", "one side wins")]


def test_answers_are_the_likeliest_tokens_without_and_with_the_adapter(learned: Learned) -> None:
    """Also where the model's makers recommend sampling and a repetition penalty."""
    asked = questions(learned.tokenizer)
    answers = answer_before_and_after(learned.run, learned.base, asked, max_new_tokens=LENGTH)
    base = tiny_model("llama", vocab_size=len(learned.tokenizer))
    assert [a.before for a in answers] == [likeliest(base, learned.tokenizer, q.ids) for q in asked]
    assert [a.after for a in answers] == [likeliest(learned.merged, learned.tokenizer, q.ids) for q in asked]
    assert all(a.before != a.after for a in answers)


@pytest.mark.slow
def test_only_an_answer_that_was_cut_off_ends_with_dots(learned: Learned) -> None:
    """Prompts are tried until the model ends an answer by itself."""
    base = tiny_model("llama", vocab_size=len(learned.tokenizer))
    asked: list[Question] = []
    expected: list[str] = []
    while {text.endswith(" …") for text in expected} != {True, False}:
        n = len(asked)
        assert n < 24
        asked.append(Question("", [3 + n, 9, 30 + n]))
        expected.append(likeliest(base, learned.tokenizer, asked[n].ids, 30))
    answers = answer_before_and_after(learned.run, learned.base, asked, max_new_tokens=30)
    assert [a.before for a in answers] == expected


def test_a_run_that_trained_every_weight_answers_with_the_weights_it_wrote(learned: Learned, tmp_path: Path) -> None:
    learned.merged.save_pretrained(tmp_path / "model")
    learned.tokenizer.save_pretrained(tmp_path / "model")
    asked = questions(learned.tokenizer)
    with_adapter = answer_before_and_after(learned.run, learned.base, asked, max_new_tokens=LENGTH)
    assert answer_before_and_after(tmp_path, learned.base, asked, max_new_tokens=LENGTH) == with_adapter


def test_what_is_asked_is_a_turn_of_the_user_or_without_template_a_beginning() -> None:
    chat = tiny_tokenizer()
    asked = question_from_text("Hi", chat, system_prompt="Be brief.")
    assert asked.prompt == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    written = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert chat.decode(asked.ids) == written
    plain = tiny_tokenizer(chat=False)
    assert question_from_text("Hi", plain) == Question("Hi", plain("Hi")["input_ids"])


def test_questions_of_pairs_are_their_first_distinct_prompts() -> None:
    tokenizer = tiny_tokenizer()
    rows = [
        {
            "prompt": [{"role": "user", "content": text}],
            "chosen": [{"role": "assistant", "content": f"good {number}"}],
            "rejected": [{"role": "assistant", "content": "bad"}],
        }
        for number, text in enumerate(["A", "A", "B", "C"])
    ]
    pairs = tokenize_pairs(Dataset.from_list(rows), tokenizer)
    asked = questions_from_pairs(pairs, tokenizer, 2)
    assert [(q.prompt[0]["content"], q.chosen) for q in asked] == [("A", "good 0"), ("B", "good 2")]
    assert asked[0].ids == question_from_text("A", tokenizer).ids
    ids_only = questions_from_pairs(pairs.select_columns(["prompt_ids", "chosen_ids"]), tokenizer, 1)[0]
    assert (ids_only.ids, ids_only.prompt) == (asked[0].ids, tokenizer.decode(asked[0].ids))
    assert ids_only.chosen is not None
    assert ids_only.chosen.strip() == "good 0"


def test_prompts_that_do_not_fit_are_refused_all_at_once(learned: Learned) -> None:
    asked = [Question("a", [3] * 250), Question("b", [3] * 10), Question("c", [3] * 300)]
    with pytest.raises(RequestError, match="2 problems") as refusal:
        answer_before_and_after(learned.run, learned.base, asked, max_new_tokens=LENGTH)
    assert [problem[:8] for problem in refusal.value.problems] == ["prompt 1", "prompt 3"]


def test_a_run_that_has_not_ended_is_refused(learned: Learned, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no adapter/ and no model/"):
        answer_before_and_after(tmp_path, learned.base, questions(learned.tokenizer), max_new_tokens=LENGTH)


@pytest.mark.parametrize(
    ("summary", "said"),
    [
        ({"status": "failed", "reason": "the loss is NaN."}, "it failed (the loss is NaN): put that right and train"),
        (
            {"status": "stopped", "reason": "SIGTERM after step 3"},
            "it ended early (SIGTERM after step 3): continue it with",
        ),
        (
            {"status": "failed", "reason": 7},
            "it failed (7): put that right and train again, or where its settings stay, continue it with",
        ),
        ({}, "when a run ends; continue it with"),
    ],
)
def test_a_run_without_a_result_says_why_and_how_it_gets_one(tmp_path: Path, summary: object, said: str) -> None:
    run = tmp_path / "my run"
    run.mkdir()
    (run / "config.yaml").write_text("model: {name: m}\n", encoding="utf-8")
    (run / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    with pytest.raises(RequestError) as refusal:
        learned_weights(run)
    assert said in str(refusal.value)
    assert f"`wishbone train '{run}/config.yaml' --resume`, or name a run that is done" in str(refusal.value)


def test_a_damaged_adapter_is_refused(learned: Learned, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_bytes(
        (learned.run / "adapter" / "adapter_config.json").read_bytes()
    )
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(RequestError, match="is damaged"):
        answer_before_and_after(tmp_path, learned.base, questions(learned.tokenizer), max_new_tokens=LENGTH)


def test_written_answers_hold_no_control_characters(tmp_path: Path) -> None:
    answer = Answer([{"role": "user", "content": "\x1b[2J"}], "\x9b31m", "\ud800", None)
    path = write_answers(tmp_path, [answer])
    content = path.read_bytes()
    assert content.isascii()
    assert b"\x1b" not in content
    assert json.loads(content)[0] == {"prompt": answer.prompt, "before": "\x9b31m", "after": "\ud800", "chosen": None}
    assert [file.name for file in tmp_path.iterdir()] == ["answers.json"]
