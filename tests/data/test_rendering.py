"""Every word of a pair is in the text that the model sees, or the loss is named: over all templates that TRL ships."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import trl
from small_tokenizers import BUILDERS, assistant, user
from transformers import PreTrainedTokenizerBase

from wishbone.data.lost_text import parts, search
from wishbone.data.rendering import EARLIER_THOUGHTS, ONE_END, UNTRAINED, VERBATIM, RenderedPair, render_pairs
from wishbone.data.template_writer import TemplateWriter
from wishbone.errors import RequestError

TEMPLATES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
TOOLS = [{"type": "function", "function": {"name": "add_up", "description": "Adds two figures.", "parameters": {}}}]


def call(arguments: Any) -> dict[str, Any]:
    function = {"name": "add_up", "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    tokenizer = BUILDERS["chatml"]()
    tokenizer.bos_token = "<|im_start|>"
    return tokenizer


def rendered(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    pair: tuple[list[Any], list[Any], list[Any]],
    tools: list[Any] | None = None,
) -> RenderedPair | Exception:
    tokenizer.chat_template = (TEMPLATES[0].parent / f"{template}.jinja").read_text(encoding="utf-8")
    return render_pairs(TemplateWriter(tokenizer, tools, None), [pair])[0]


def written(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    pair: tuple[list[Any], list[Any], list[Any]],
    tools: list[Any] | None = None,
) -> RenderedPair:
    found = rendered(tokenizer, template, pair, tools)
    assert isinstance(found, RenderedPair)
    return found


WORDS = [
    "lake",
    "Ünïcode 湖",
    'a "quoted" word',
    "it's",
    "line\nbreak",
    "7",
    "a",
    "{braces}",
    "<b>bold</b>",
    "tab\there",
]


def _words(chance: random.Random) -> str:
    return " ".join(chance.choices(WORDS, k=chance.randint(1, 6)))


def _content(chance: random.Random) -> Any:
    if chance.random() < 0.3:
        return [{"type": "text", "text": _words(chance)} for _ in range(chance.randint(1, 2))]
    return _words(chance)


def _turn(chance: random.Random, role: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": role, "content": _content(chance)}
    if role == "assistant" and chance.random() < 0.3:
        if chance.random() < 0.5:
            message["reasoning_content"] = _words(chance)
        else:
            message["content"] = f"<think>\n{_words(chance)}\n</think>\n\n{_words(chance)}"
    return message


def _pair(chance: random.Random) -> tuple[list[Any], list[Any], list[Any]]:
    prompt = [{"role": "system", "content": _words(chance)}] * (chance.random() < 0.4) + [_turn(chance, "user")]
    while chance.random() < 0.4:
        prompt += [_turn(chance, "assistant"), _turn(chance, "user")]
    if chance.random() < 0.3:
        arguments: Any = {_words(chance): _words(chance), "figure": chance.randint(0, 9)}
        prompt += [call(arguments), {"role": "tool", "name": "add_up", "content": _words(chance)}]
    return prompt, [_turn(chance, "assistant")], [_turn(chance, "assistant")]


def _said(message: dict[str, Any]) -> list[str]:
    """What a message says, found in another way than by the code under test: every text in it, split at spaces."""
    texts: list[str] = []

    def visit(value: Any) -> None:
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, dict):
            for key, item in value.items():
                if key not in ("type", "role", "id"):
                    visit(item)
        elif isinstance(value, list):
            for item in value:
                visit(item)

    visit({key: item for key, item in message.items() if key not in ("role", "name")})
    return [word for text in texts for word in text.replace("<think>", " ").replace("</think>", " ").split()]


@pytest.mark.slow
@pytest.mark.parametrize("template", [path.stem for path in TEMPLATES])
def test_every_word_is_in_the_text_or_its_loss_is_named(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    chance = random.Random(template)
    seen = 0
    for _ in range(12):
        pair = _pair(chance)
        found = rendered(tokenizer, template, pair)
        if isinstance(found, Exception):
            continue
        seen += 1
        for text, completion in ((found.chosen.text, pair[1]), (found.rejected.text, pair[2])):
            assert "{'type'" not in text and '{"type": "text"' not in text
            if found.lost is None:
                left_out = EARLIER_THOUGHTS in found.notes
                for message in completion if left_out else [*pair[0], *completion]:
                    for word in _said(message):
                        escaped = word.replace('"', '\\"'), word.replace("'", "\\'"), word.encode("unicode_escape")
                        assert any(form in text for form in (word, *map(str, escaped[:2]))), (word, text)
    assert seen or template.startswith(("llava", "muse")), "the template refused all pairs"


@pytest.mark.slow
@pytest.mark.parametrize("template", [path.stem for path in TEMPLATES])
def test_plain_pairs_are_written_as_transformers_writes_them(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    pair = [user("Name a lake."), assistant("Baikal."), user("Another?")], [assistant("Como.")], [assistant("Ob.")]
    found = written(tokenizer, template, pair)
    assert found.lost is None and not found.empty
    if found.notes:  # templates of image models print a text only where it is a block
        assert template.split("_training")[0] in ("idefics3", "smolvlm", "llava_next")
        return
    plain = tokenizer.apply_chat_template(pair[0] + pair[1], tokenize=False)
    assert found.chosen.text == plain


@pytest.mark.parametrize("template", ["qwen3", "llama3_1", "gemma", "phi3", "lfm2", "gptoss", "qwen3_vl"])
def test_text_blocks_are_written_as_their_text(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    def pair(content: Any) -> tuple[list[Any], list[Any], list[Any]]:
        return [{"role": "user", "content": content}], [assistant("Baikal")], [assistant("Como")]

    blocks = written(
        tokenizer, template, pair([{"type": "text", "text": "Name "}, {"type": "text", "text": "a lake."}])
    )
    assert blocks.chosen == written(tokenizer, template, pair("Name a lake.")).chosen
    assert blocks.lost is None


@pytest.mark.parametrize("template", ["qwen2_5", "qwen3", "deepseekv3", "glm4moe", "gptoss", "gemma4", "llama3_1"])
def test_arguments_as_text_and_as_objects_are_written_alike(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    texts = {
        written(tokenizer, template, ([user("2 + 2?")], [call(arguments)], [assistant("5")])).chosen.text
        for arguments in ({"first": 2, "second": "zwei"}, '{"first":2,"second":"zwei"}')
    }
    (text,) = texts
    assert "add_up" in text and "zwei" in text and '\\"' not in text


@pytest.mark.parametrize("template", ["llama3", "gemma", "phi3", "qwen2_5_vl", "lfm2"])
def test_a_tool_call_that_a_template_does_not_know_is_lost(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    found = written(tokenizer, template, ([user("2 + 2?")], [call({"a": 2})], [assistant("5")]))
    assert found.lost is not None and "tool calls (chosen)" in found.lost
    assert found.empty


def test_a_short_result_is_not_mistaken_for_a_part_of_the_template(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = [user("2 + 2?"), assistant("I add."), {"role": "tool", "name": "add_up", "content": "a"}]
    found = written(tokenizer, "phi3", (prompt, [assistant("It is four.")], [assistant("Five.")]))
    assert found.lost is not None and "tool results (prompt)" in found.lost


def test_thoughts_of_an_answer_are_written_after_the_opened_thought(tokenizer: PreTrainedTokenizerBase) -> None:
    pair = [user("Which lake?")], [assistant("<think>The deepest one.</think>Baikal")], [assistant("Como")]
    for template in ("deepseek_r1_distill", "deepseekv3"):
        found = written(tokenizer, template, pair)
        assert found.lost is None and found.notes == (VERBATIM,)
        assert found.chosen.text.startswith(found.prompt.text)
        assert found.chosen.text.count("<think>") == 1
        assert found.chosen.text.count("Baikal") == 1
        assert found.chosen.text.endswith("The deepest one.</think>Baikal<｜end▁of▁sentence｜>")
        assert found.rejected.text.endswith("Como<｜end▁of▁sentence｜>")


@pytest.mark.parametrize(("template", "noted"), [("qwen3", True), ("glm4moe", True), ("llama3", False)])
def test_thoughts_of_earlier_turns_may_be_left_out(
    tokenizer: PreTrainedTokenizerBase, template: str, noted: bool
) -> None:
    prompt = [user("A?"), assistant("<think>The deepest one.</think>Baikal"), user("Why?")]
    found = written(tokenizer, template, (prompt, [assistant("Deep.")], [assistant("Blue.")]))
    assert found.lost is None
    assert (EARLIER_THOUGHTS in found.notes) == noted == ("deepest" not in found.chosen.text)


def test_thoughts_in_a_key_that_the_template_does_not_read_are_lost(tokenizer: PreTrainedTokenizerBase) -> None:
    chosen = assistant("Baikal") | {"reasoning_content": "The deepest one."}
    for template in ("llama3", "gemma4", "deepseek_r1_distill"):
        found = written(tokenizer, template, ([user("A?")], [chosen], [assistant("Como")]))
        assert found.lost is not None and "thoughts (chosen)" in found.lost and not found.empty
    assert written(tokenizer, "qwen3", ([user("A?")], [chosen], [assistant("Como")])).lost is None


def test_tools_that_the_template_does_not_describe_are_lost(tokenizer: PreTrainedTokenizerBase) -> None:
    pair = [user("2 + 2?")], [assistant("4")], [assistant("5")]
    assert written(tokenizer, "qwen3", pair, TOOLS).lost is None
    lost = written(tokenizer, "llama3", pair, TOOLS).lost
    assert lost is not None and "descriptions of tools" in lost and "which has no tools" in lost
    assert written(tokenizer, "llama3_1", pair, []) == written(tokenizer, "llama3_1", pair, None)


def test_a_tool_without_description_is_not_found_in_the_words_of_a_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    pair = [user("What should I add?")], [assistant("Salt.")], [assistant("Sand.")]
    for template, lost in (("llama3", True), ("qwen3", False)):
        found = written(tokenizer, template, pair, [{"type": "function", "function": {"name": "add"}}])
        assert ("descriptions of tools" in (found.lost or "")) is lost


def test_what_another_part_repeats_is_still_missed(tokenizer: PreTrainedTokenizerBase) -> None:
    """An answer begins with its thought, repeats an earlier answer, or calls a tool with words of the prompt."""
    said = "The deepest lake is Lake Baikal."
    pair = [user("Which lake is the deepest?")], [assistant(f"<think>{said}</think>{said} Yes.")], [assistant("Como.")]
    for template in ("deepseek_r1_distill", "deepseekv3"):
        found = written(tokenizer, template, pair)
        assert found.chosen.text.count(said) == 2 and found.notes == (VERBATIM,)
    thoughtful = [assistant(said) | {"reasoning_content": said}]
    found = written(tokenizer, "llama3", ([user("Which lake?")], thoughtful, [assistant("Como.")]))
    assert "loses thoughts (chosen)" in (found.lost or "")
    calling = [call({"sentence": "Which lake is the deepest?"})]
    found = written(tokenizer, "llama3", ([user("Which lake is the deepest?")], calling, [assistant("Como.")]))
    assert "loses tool calls (chosen)" in (found.lost or "")


def test_the_end_of_an_answer_is_written_once(tokenizer: PreTrainedTokenizerBase) -> None:
    def pair(end: str) -> tuple[list[Any], list[Any], list[Any]]:
        return [user("A?")], [assistant("Baikal" + end)], [assistant("Como")]

    twice = written(tokenizer, "qwen3", pair("<|im_end|>"))
    assert twice.notes == (ONE_END,)
    assert twice.chosen == written(tokenizer, "qwen3", pair("")).chosen
    assert "Baikal<|im_end|>" in written(tokenizer, "gemma", pair("<|im_end|>")).chosen.text  # it ends in another way


def test_a_search_finds_what_is_missing_and_what_is_too_short_to_be_sure_of() -> None:
    conversation = [user("Where is the deepest lake?"), assistant("two"), user("Whose water is the clearest?")]
    found = search(conversation, "<u>Where is the\n  deepest lake?<a>two<u>")
    assert [(part.message, part.text) for part in found.lost] == [(2, "Whose water is the clearest?")]
    assert [part.text for part in found.unsure] == ["two"]
    assert len(parts(conversation)) == 3


def test_keys_that_the_template_does_not_print_are_named(tokenizer: PreTrainedTokenizerBase) -> None:
    spoken = ([user("Hi") | {"name": "Alice"}], [assistant("Ho") | {"citations": ["page 9"]}], [assistant("Hu")])
    notes = written(tokenizer, "qwen3", spoken).notes
    assert notes == ("the chat template does not print these keys of messages: citations, name",)
    result = {"role": "tool", "name": "add", "tool_call_id": "c1", "content": "4"}
    assert written(tokenizer, "qwen3", ([user("2 + 2?"), result], [assistant("4")], [assistant("5")])).notes == ()


@pytest.mark.parametrize("mark", [{"weight": 0}, {"loss": False}, {"train": False}])
def test_an_answer_that_is_marked_as_not_to_be_trained_is_named(
    tokenizer: PreTrainedTokenizerBase, mark: dict[str, Any]
) -> None:
    marked = [assistant("Ho") | mark, user("And?"), assistant("Ha")]
    assert UNTRAINED in written(tokenizer, "qwen3", ([user("Hi")], marked, [assistant("Hu")])).notes
    earlier = [user("Hi"), assistant("Ho") | mark, user("And?")]
    assert UNTRAINED not in written(tokenizer, "qwen3", (earlier, [assistant("Ha")], [assistant("Hu")])).notes


def test_settings_that_the_template_does_not_read_or_that_are_not_its_own_are_named(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer.chat_template = (TEMPLATES[0].parent / "qwen3.jinja").read_text(encoding="utf-8")
    pair = ([user("Hi")], [assistant("Ho")], [assistant("Hu")])
    [found] = render_pairs(TemplateWriter(tokenizer, None, {"enable_thinking": False, "thinking": True}), [pair])
    assert isinstance(found, RenderedPair)
    assert found.notes == ("the chat template does not read chat_template_kwargs: thinking",)
    with pytest.raises(RequestError, match=r"chat_template_kwargs names tokenize, tools, which every pair sets"):
        TemplateWriter(tokenizer, None, {"tokenize": False, "tools": []})
