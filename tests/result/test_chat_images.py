"""A question of a conversation shows images, and a model answers it as it does in transformers alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learned import Learned
from PIL import Image
from result.conftest import Command
from result.test_chat import conversation, ignore
from tiny_vision import picture, tiny_vision_model, tiny_vision_processor

from wishbone.config import dump_config, parse_config
from wishbone.errors import RequestError
from wishbone.model.adapter import add_adapter
from wishbone.result.shown_images import named_without_mark, parts_of


@pytest.fixture(scope="module")
def vision_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on images whose adapter has random weights, in the chat template."""
    place = tmp_path_factory.mktemp("vision")
    processor = tiny_vision_processor()
    model = tiny_vision_model(processor)
    model.save_pretrained(place / "base")
    processor.save_pretrained(place / "base")
    adapted = add_adapter(model, rank=4, target_modules="language-linear")
    torch.manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    adapted.save_pretrained(place / "run/adapter")
    processor.save_pretrained(place / "run/adapter")
    text = f"model: {{name: {place / 'base'}, dtype: float32}}\ndata: {{train: none.jsonl, template: chat}}\n"
    (place / "run/config.yaml").write_text(dump_config(parse_config(text)), encoding="utf-8")
    return place / "run"


@pytest.fixture
def cats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Image.Image]:
    """Two files of images in the working directory."""
    found = [picture(16, 16, seed) for seed in (1, 2)]
    found[0].save(tmp_path / "1.png")
    found[1].save(tmp_path / "my cat.png")
    monkeypatch.chdir(tmp_path)
    return found


def test_answers_see_the_images_of_a_question_and_of_those_before(vision_run: Path, cats: list[Image.Image]):
    talk = conversation(vision_run, tokens=6)
    processor = talk.model.processor
    turns: list[dict[str, object]] = []
    for question, parts, images in (
        ("@1.png What is it?", ["image", "What is it?"], 1),
        ('And @"my cat.png" or @1.png?', ["And", "image", "or", "image", "?"], 3),
        ("Write to @bob.", ["Write to @bob."], 3),
    ):
        reply = talk.ask(question, ignore)
        said = [{"type": "image"} if part == "image" else {"type": "text", "text": part} for part in parts]
        turns.append({"role": "user", "content": said})
        text = processor.apply_chat_template(turns, add_generation_prompt=True)
        given = {"images": [cats[0], cats[1], cats[0]][:images], "text": text, "return_tensors": "pt"}
        inputs = processor(**given, add_special_tokens=False)
        answer = talk.model.trained.generate(**inputs, max_new_tokens=6, do_sample=False)
        expected = processor.tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert reply.text == expected.strip()
        turns.append({"role": "assistant", "content": [{"type": "text", "text": reply.text}]})
    assert talk.ask_before(ignore).text != reply.text
    talk.reset()
    assert talk.ask("@1.png What is it?", ignore).text != talk.ask("What is it?", ignore).text


def test_a_text_to_continue_shows_images_where_they_stand(vision_run: Path, cats: list[Image.Image]):
    talk = conversation(vision_run, tokens=4)
    talk.as_text = True
    reply = talk.ask("This is @1.png in", ignore)
    processor = talk.model.processor
    inputs = processor(images=cats[0], text="This is <image> in", return_tensors="pt", add_special_tokens=False)
    answer = talk.model.trained.generate(**inputs, max_new_tokens=4, do_sample=False)
    expected = processor.tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert reply.text == expected.strip()


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("@none.png What?", "there is no such file"),
        ("@https://example.org/cat?size=9 What?", "is not fetched from the network; save the image"),
        ("@notes.txt What?", "is not an image that is read"),
        ("@data:image/png;base64,??? What?", "is not valid base64"),
        ("What is <image>?", "the question has the text '<image>' and no image there"),
        ("@1.png is <image>?", "does not take 1 images"),
    ],
)
def test_what_cannot_be_shown_is_refused_and_forgotten(
    vision_run: Path, cats: list[Image.Image], question: str, reason: str
):
    Path("notes.txt").write_text("no image")
    talk = conversation(vision_run, tokens=2)
    with pytest.raises(RequestError, match=reason.replace("?", r"\?")):
        talk.ask(question, ignore)
    assert talk.turns == []
    assert talk.last_question is None


def test_a_run_on_text_says_that_it_shows_none(run: Path, learned: Learned, cats: list[Image.Image]):
    talk = conversation(run, tokens=2)
    with pytest.raises(RequestError, match=r"trained on text alone, so 1\.png cannot be shown; leave out the word"):
        talk.ask("@1.png What is it?", ignore)
    assert talk.ask("Write to @bob.", ignore).end in ("token", "length")


def test_words_are_images_only_where_they_name_one(cats: list[Image.Image]):
    assert parts_of("mail a@1.png") == [{"type": "text", "text": "mail a@1.png"}]
    kinds = [part["type"] for part in parts_of("(@1.png) is @1.png, not @2")]
    assert kinds == ["text", "image", "text"]
    assert named_without_mark("What is 1.png, and 'my cat.png' or 3.png?") == ["1.png"]


def test_the_command_shows_images_from_a_pipe(vision_run: Path, cats: list[Image.Image], wishbone: Command):
    typed = "@1.png What is it?\nWhat is 1.png?\n@none.png What?\n"
    answer = wishbone("chat", vision_run, "--max-new-tokens", "2", "--json", typed=typed)
    assert answer.exit_code == 2
    assert "a word with an @ shows one" in answer.stderr
    assert "1.png is read as text; @1.png shows the image" in answer.stderr
    assert "line 3: image 'none.png': there is no such file" in " ".join(answer.stderr.split())
    assert answer.stdout.count('"question"') == 2
