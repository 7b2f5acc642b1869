"""A conversation asks in the form that was trained, shows answers as they arrive, and survives what is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from learned import Learned
from result.conftest import Command
from transformers import AutoModelForCausalLM

from wishbone.cli.chat import _converse, chat
from wishbone.config import dump_config, parse_config
from wishbone.errors import RequestError
from wishbone.result.conversation import Conversation, Decoding
from wishbone.result.finished_run import finished_run, was_trained_on_texts
from wishbone.result.trained_model import TrainedModel


def set_template(run: Path, template: str) -> None:
    text = (run / "config.yaml").read_text()
    assert "template: chat" in text
    (run / "config.yaml").write_text(text.replace("template: chat", f"template: {template}"))


def conversation(run: Path, tokens: int = 12, system: str | None = None) -> Conversation:
    finished = finished_run(run)
    model = TrainedModel(finished)
    return Conversation(model, was_trained_on_texts(finished, model.tokenizer), system, Decoding(tokens))


def ignore(_: str) -> None:
    pass


@torch.no_grad()
def most_likely(model: torch.nn.Module, ids: list[int], count: int, end: int) -> list[int]:
    """The answer one token at a time, from the logits of the whole sequence, without a cache."""
    found: list[int] = []
    while len(found) < count and (not found or found[-1] != end):
        found.append(int(model(input_ids=torch.tensor([ids + found])).logits[0, -1].argmax()))
    return found


def decoded(learned: Learned, model: torch.nn.Module, messages: list[dict[str, str]], count: int) -> str:
    ids = list(learned.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])
    tokens = most_likely(model, ids, count, learned.tokenizer.eos_token_id)
    return learned.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def test_answers_are_the_most_likely_ones_in_the_chat_template_with_the_turns_before(run: Path, learned: Learned):
    talk = conversation(run, system="Be brief.")
    turns = [{"role": "system", "content": "Be brief."}]
    for question in ("Hi there", "What is 5?"):
        pieces: list[str] = []
        reply = talk.ask(question, pieces.append)
        turns.append({"role": "user", "content": question})
        assert reply.text == decoded(learned, learned.merged, turns, 12)
        assert "".join(pieces).removesuffix(" …").strip() == reply.text
        assert len(pieces) > 1, "the answer came in one piece"
        turns.append({"role": "assistant", "content": reply.text})


def test_base_answers_the_same_question_without_the_adapter_and_leaves_the_conversation_alone(
    run: Path, learned: Learned
):
    talk = conversation(run)
    talk.ask("Hi", ignore)
    trained = talk.ask("What is 3?", ignore)
    turns = list(talk.turns)
    base = AutoModelForCausalLM.from_pretrained(learned.base.name).eval()
    expected = decoded(learned, base, turns[:-1], 12)
    before = talk.ask_before(ignore)
    assert before.text == expected != trained.text
    assert talk.turns == turns
    talk.reset()
    with pytest.raises(RequestError, match="nothing was asked yet"):
        talk.ask_before(ignore)


def test_a_run_of_every_weight_answers_with_its_own_and_with_the_first_weights(full_run: Path, learned: Learned):
    talk = conversation(full_run)
    asked = [{"role": "user", "content": "What is 3?"}]
    assert talk.ask("What is 3?", ignore).text == decoded(learned, learned.merged, asked, 12)
    base = AutoModelForCausalLM.from_pretrained(learned.base.name).eval()
    assert talk.ask_before(ignore).text == decoded(learned, base, asked, 12)


@pytest.mark.parametrize("template", ["none", "auto"])
def test_texts_are_continued_where_texts_were_trained(run: Path, learned: Learned, template: str):
    """Version 0.1.0 recorded no template and trained texts as they are."""
    set_template(run, template)
    talk = conversation(run)
    talk.ask("another text", ignore)
    ids = list(learned.tokenizer("What is 5?")["input_ids"])
    tokens = most_likely(learned.merged, ids, 12, learned.tokenizer.eos_token_id)
    expected = learned.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert talk.ask("What is 5?", ignore).text == expected
    assert talk.turns == []


def test_ctrl_c_ends_an_answer_and_not_the_conversation(run: Path):
    talk = conversation(run, tokens=60)
    parts: list[str] = []
    whole = talk.ask("Hi", parts.append)
    talk.reset()
    pieces: list[str] = []

    def impatient(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 1:
            raise KeyboardInterrupt

    stopped = talk.ask("Hi", impatient)
    assert stopped.end == "person"
    assert stopped.text and whole.text.startswith(stopped.text)
    assert len(stopped.text) < len(whole.text) or parts[0] == whole.text, "unless all came in one piece"
    assert talk.turns[-1] == {"role": "assistant", "content": stopped.text}
    assert talk.ask("And now?", ignore).end != "person"


def test_a_conversation_that_the_model_has_no_room_for_is_refused_with_the_remedy(run: Path):
    talk = conversation(run, tokens=4)
    talk.ask("Hi", ignore)
    with pytest.raises(RequestError, match="the model takes 256; begin a new conversation with /reset"):
        talk.ask("word " * 300, ignore)
    talk.reset()
    assert talk.ask("Hi", ignore).text


def test_draws_depend_on_the_seed(run: Path):
    talk = conversation(run)
    answers = []
    for seed in (1, 1, 2):
        talk.decoding = Decoding(12, temperature=1.0, seed=seed)
        talk.reset()
        answers.append(talk.ask("Hi", ignore).text)
    assert answers[0] == answers[1] != answers[2]


def test_a_pipe_asks_each_line_by_itself(run: Path, wishbone: Command):
    result = wishbone("chat", run, "--max-new-tokens", 8, "--json", typed="Hi\n\nWhat is 5?\nHi\n/base\n/quit\nlater\n")
    assert result.exit_code == 0, result.stderr
    first, _, again, base = map(json.loads, result.stdout.splitlines())
    assert first == again, "an answer depended on the lines before"
    assert (base["model"], base["question"]) == ("base", "Hi") and base["answer"] != first["answer"]


def test_a_pipe_takes_the_commands_of_a_terminal_and_refuses_others(run: Path, wishbone: Command):
    lines = ("Hi", "/system Be kind.", "Hi", "/help", "/sytem", "/usr/bin/env is what?", "/reset", "/exit", "later")
    result = wishbone("chat", run, "--max-new-tokens", 8, "--json", typed="\n".join(lines))
    asked = [json.loads(line) for line in result.stdout.splitlines()]
    assert [one["question"] for one in asked] == ["Hi", "Hi", "/usr/bin/env is what?"], "a command was asked"
    assert asked[0]["answer"] != asked[1]["answer"], "the system prompt changed nothing"
    assert "line 5: /sytem is not a command" in result.stderr and result.exit_code == 2


def test_a_pipe_prints_answers_without_control_characters(
    run: Path, wishbone: Command, monkeypatch: pytest.MonkeyPatch
):
    from transformers import PreTrainedTokenizerFast

    decode = PreTrainedTokenizerFast.decode
    monkeypatch.setattr(PreTrainedTokenizerFast, "decode", lambda *a, **b: "\x1b[31m\x9b2J" + str(decode(*a, **b)))
    result = wishbone("chat", run, "--max-new-tokens", 6, typed="Hi \x1b[2J\n" + "word " * 300 + "\n\xff\n")
    assert all(letter.isprintable() or letter == "\n" for letter in result.stdout + result.stderr)
    assert "[31m" in result.stdout
    assert "line 2: the conversation has" in result.stderr
    assert result.exit_code == 2


def test_a_terminal_session(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Every command, an unknown one, Ctrl-C at the prompt and the end of input."""
    typed = iter(
        ["/base", "Hi", "/base", "", KeyboardInterrupt(), "/sudo", "/system Be kind.", "Hi", "/reset", "/help"]
    )

    def read(_: str) -> str:
        line = next(typed, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    talk = conversation(run, tokens=6)
    _converse(talk, as_json=True)
    shown = capsys.readouterr()
    asked = [json.loads(line) for line in shown.out.splitlines() if line.startswith("{")]
    assert [one["model"] for one in asked] == ["trained", "base", "trained"]
    assert asked[0]["answer"] != asked[2]["answer"], "the system prompt changed nothing"
    for said in ("nothing was asked yet", "/quit or Ctrl-D", "/sudo is not a command", "with this system prompt"):
        assert said in shown.err
    assert talk.turns == [] and talk.system == "Be kind."


def test_what_cannot_be_talked_to_is_refused(run: Path, wishbone: Command, tmp_path: Path):
    assert wishbone("chat", run / "adapter", "--max-new-tokens", 2, typed="Hi\n").exit_code == 0
    set_template(run, "none")
    refused = wishbone("chat", run, "--system", "Be kind.", typed="Hi\n")
    assert refused.exit_code == 2 and "without a chat template" in refused.stderr
    (run / "adapter" / "adapter_model.safetensors").write_bytes(b"damaged")
    damaged = wishbone("chat", run, typed="Hi\n")
    assert damaged.exit_code == 2 and "is damaged" in damaged.stderr
    (run / "config.yaml").unlink()
    alone = wishbone("chat", run / "adapter", typed="Hi\n")
    assert alone.exit_code == 2 and "no run around them" in alone.stderr


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("chat",), "name"),
        (("compare",), "name"),
        (("eval", "PAIRS"), "name"),
        (("eval", "PAIRS"), "reference"),
        (("export", "--merged", "OUT"), "name"),
    ],
)
@pytest.mark.slow
def test_a_model_that_has_moved_is_named_with_the_remedy(
    run: Path, wishbone: Command, tmp_path: Path, words: tuple[str, ...], key: str
):
    settings, gone = run / "config.yaml", tmp_path / "gone"
    kept = settings.read_text()
    config = parse_config(kept)
    moved = config.model_copy(update={"model": config.model.model_copy(update={key: str(gone)})})
    settings.write_text(dump_config(moved))
    command, *rest = [{"PAIRS": tmp_path / "pairs.jsonl", "OUT": tmp_path / "merged"}.get(word, word) for word in words]
    refused = wishbone(command, run, *rest, typed="Hi\n")
    said = " ".join(refused.stderr.split())
    assert refused.exit_code == 2 and f"no longer at {str(gone)!r}" in said and f"as model.{key} into" in said
    settings.write_text(kept)
    assert wishbone(command, run, *rest, typed="").exit_code == 0


def test_a_closed_standard_input_is_a_wrong_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(typer.Exit) as end:
        chat(tmp_path, system=None, max_new_tokens=1, temperature=0.0, seed=0, as_json=False, trust_remote_code=False)
    assert end.value.exit_code == 2
    assert "standard input is closed" in capsys.readouterr().err
