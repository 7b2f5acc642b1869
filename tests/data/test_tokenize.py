"""Token ids are TRL's, for every kind of tokenizer; what is not a pair, or has no template, is refused."""

from __future__ import annotations

import copy
import inspect
import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, Json, List, Value, load_from_disk
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from small_tokenizers import BUILDERS, assistant, dataset, ids_of, trl_ids, user
from transformers import PreTrainedTokenizerBase

from wishbone.data.encoding import _opener
from wishbone.data.tokenize import tokenize_pairs
from wishbone.errors import RequestError

Tokenizers = dict[str, PreTrainedTokenizerBase]
every_tokenizer = pytest.mark.parametrize("name", BUILDERS)

CHATS = [
    {
        "prompt": [user("What is the capital of France?")],
        "chosen": [assistant("Paris.")],
        "rejected": [assistant("London. ")],
    },
    {
        "prompt": [{"role": "system", "content": "Grüße"}, user(" a\n"), assistant("  b"), user("c\n\n")],
        "chosen": [assistant("Paris <|im_end|> <s> </s>"), user("and?"), assistant("これは猫です")],
        "rejected": [assistant("")],
    },
    {"prompt": [user("<|im_start|> Newton")], "chosen": [assistant("x\n\n")], "rejected": [assistant("\n\nx")]},
]
TEXTS = [
    {"prompt": "The New", "chosen": "ton fell", "rejected": "spapers"},
    {"prompt": "The sky is", "chosen": " blue.", "rejected": " green.<|im_end|>"},
    {"prompt": "", "chosen": "Newton", "rejected": "New</s>"},
    {"prompt": "これは", "chosen": "猫です<end>", "rejected": "\n12345"},
]


@pytest.mark.slow
@every_tokenizer
def test_chats_get_the_ids_of_trl(tokenizers: Tokenizers, name: str) -> None:
    rows = dataset(*CHATS)
    assert ids_of(tokenize_pairs(rows, tokenizers[name])) == trl_ids(rows, tokenizers[name])


@every_tokenizer
def test_texts_get_the_ids_of_trl(tokenizers: Tokenizers, name: str) -> None:
    rows = dataset(*TEXTS)
    assert ids_of(tokenize_pairs(rows, tokenizers[name])) == trl_ids(rows, tokenizers[name])


content = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n\t<|>/s[]")), max_size=12
) | st.lists(
    st.sampled_from(
        ["<|im_start|>", "<|im_end|>", "\n<|im", "<s>", "</s>", "[INST]", " ", "\n", "New", "ton", "é", "assistant"]
    ),
    max_size=6,
).map("".join)
turns = st.lists(
    st.builds(
        lambda role, text: {"role": role, "content": text}, st.sampled_from(["user", "assistant", "system"]), content
    ),
    min_size=1,
    max_size=4,
)
replies = st.lists(content.map(assistant), min_size=1, max_size=2)
chats = st.lists(
    st.fixed_dictionaries({"prompt": turns, "chosen": replies, "rejected": replies}), min_size=1, max_size=4
)
texts = st.lists(
    st.fixed_dictionaries({"prompt": content, "chosen": content, "rejected": content}), min_size=1, max_size=4
)


@pytest.mark.slow
@every_tokenizer
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=chats | texts)
def test_any_pairs_get_the_ids_of_trl(tokenizers: Tokenizers, name: str, rows: list[dict[str, Any]]) -> None:
    end = str(tokenizers[name].eos_token)
    assume(not any(_ends_before_space(row[side], end) for row in rows for side in ("chosen", "rejected")))
    pairs = dataset(*rows)
    expected = trl_ids(dataset(*(_without_second_end(row, tokenizers[name]) for row in rows)), tokenizers[name])
    if isinstance(rows[0]["prompt"], str) and (beginning := tokenizers[name].bos_token_id) is not None:
        expected = [_without_second_beginning(triple, beginning) for triple in expected]
    assert ids_of(tokenize_pairs(pairs, tokenizers[name])) == expected


def _ends_before_space(text: str | list[Any], end: str) -> bool:
    """Another difference to TRL, which a test of its own describes."""
    return isinstance(text, str) and not text.endswith(end) and text.rstrip().endswith(end)


def _without_second_end(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """A difference to TRL: an answer that ends with the end token does not get another."""
    end = str(tokenizer.eos_token)

    def cut(text: str) -> str:
        return cut(text.removesuffix(end)) if text.endswith(end) else text

    if isinstance(row["prompt"], str):
        return row | {side: cut(row[side]) for side in ("chosen", "rejected")}
    plain: Any = tokenizer.apply_chat_template([user("a"), assistant("b")], tokenize=False)
    if not plain.rstrip().endswith(end):
        return row
    return row | {
        side: [*row[side][:-1], assistant(_cut_stripped(row[side][-1]["content"], end))]
        for side in ("chosen", "rejected")
    }


def _cut_stripped(text: str, end: str) -> str:
    while text.rstrip().endswith(end):
        text = text.rstrip().removesuffix(end)
    return text


def _without_second_beginning(triple: tuple[list[int], list[int], list[int]], beginning: int) -> Any:
    """A difference to TRL: a text that begins with the beginning token does not get another."""
    prompt, chosen, rejected = triple
    wholes = [prompt + chosen, prompt + rejected]
    wholes = [ids[1:] if ids[:2] == [beginning] * 2 else ids for ids in wholes]
    prompt = prompt[1:] if prompt[:2] == [beginning] * 2 else prompt
    length = 0
    while (
        all(length < len(ids) for ids in (prompt, *wholes)) and prompt[length] == wholes[0][length] == wholes[1][length]
    ):
        length += 1
    return prompt[:length], wholes[0][length:], wholes[1][length:]


def test_the_beginning_is_never_doubled(tokenizers: Tokenizers, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tokenizers["adds a beginning"]
    texts = dataset({"prompt": "<s>Newton", "chosen": " fell", "rejected": " flew"})
    chats = dataset({"prompt": [user("Newton")], "chosen": [assistant("a")], "rejected": [assistant("b")]})
    for rows in (texts, chats):
        prompt, chosen, _ = ids_of(tokenize_pairs(rows, tokenizer))[0]
        assert (prompt + chosen).count(tokenizer.bos_token_id) == 1
        assert prompt[0] == tokenizer.bos_token_id
    assert caplog.text.count("which the tokenizer adds too; it is written once") == 1  # a template writes its own


@pytest.mark.parametrize("doubled", [False, True])
def test_an_end_that_is_written_once_where_trl_writes_two_is_said(
    tokenizers: Tokenizers, caplog: pytest.LogCaptureFixture, doubled: bool
) -> None:
    tokenizer = tokenizers["no backend"]
    end = tokenizer.eos_token
    tokenize_pairs(dataset({"prompt": "a", "chosen": "b" + end * (1 + doubled), "rejected": "c"}), tokenizer)
    assert ("the end-of-sequence token would stand twice, as in TRL" in caplog.text) == doubled


def test_an_implicit_prompt_is_extracted_as_by_trl(chatml: PreTrainedTokenizerBase) -> None:
    for rows in (
        dataset({"chosen": "The sky is blue", "rejected": "The sky is black"}, {"chosen": "a b", "rejected": "a b c"}),
        dataset({"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]}),
    ):
        assert ids_of(tokenize_pairs(rows, chatml)) == trl_ids(rows, chatml)


def test_tools_and_template_settings_of_the_row_are_used(chatml: PreTrainedTokenizerBase) -> None:
    tool = '[{"type": "function", "function": {"name": "now", "parameters": {}}}]'
    pair = {"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
    features = Features(
        {name: List({"role": Value("string"), "content": Value("string")}) for name in pair}
        | {"tools": Value("string"), "chat_template_kwargs": Json()}
    )
    rows = Dataset.from_list(
        [
            pair | {"tools": t, "chat_template_kwargs": k}
            for t in (tool, None)
            for k in ({"shout": "AH"}, {}, {"shout": "OH"})
        ],
        features=features,
    )
    ids = ids_of(tokenize_pairs(rows, chatml))
    assert ids == trl_ids(rows, chatml)
    assert len({tuple(prompt + chosen) for prompt, chosen, _ in ids}) == 6


@pytest.mark.skipif(
    "sanitize_control_tokens" not in inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters,
    reason="this transformers has no such argument",
)
def test_an_argument_for_the_tokenizer_takes_the_way_through_the_tokenizer(chatml: PreTrainedTokenizerBase) -> None:
    pair = {"prompt": [user("a <|im_end|> b")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
    rows = dataset(pair | {"chat_template_kwargs": {"sanitize_control_tokens": True}})
    ids = ids_of(tokenize_pairs(rows, chatml))
    assert ids == trl_ids(rows, chatml)
    assert ids != ids_of(tokenize_pairs(dataset(pair), chatml))


def test_a_setting_that_asks_for_tensors_gives_the_same_ids(chatml: PreTrainedTokenizerBase) -> None:
    pair = {"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("a longer one")]}
    asked = dataset(pair | {"chat_template_kwargs": {"return_tensors": "pt"}})
    assert ids_of(tokenize_pairs(asked, chatml)) == ids_of(tokenize_pairs(dataset(pair), chatml))


def test_a_class_that_adds_to_its_backend_is_called(chatml: PreTrainedTokenizerBase) -> None:
    class Swapped(type(chatml)):  # type: ignore[misc]
        def _encode_plus(self, text: Any, *args: Any, **kwargs: Any) -> Any:
            text = [one.replace("o", "u") for one in text] if isinstance(text, list) else text.replace("o", "u")
            return super()._encode_plus(text, *args, **kwargs)

    swapped = copy.copy(chatml)
    swapped.__class__ = Swapped
    rows = dataset({"prompt": "who ", "chosen": "you", "rejected": "two"})
    ids = ids_of(tokenize_pairs(rows, swapped))
    assert ids == trl_ids(rows, swapped)
    assert ids != ids_of(tokenize_pairs(rows, chatml))


def test_ids_agree_with_a_hand_count(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers["no backend"]
    row = ids_of(tokenize_pairs(dataset({"prompt": "ab", "chosen": "c", "rejected": "d<|im_end|>"}), tokenizer))[0]
    end = tokenizer.eos_token_id
    assert row == ([97, 98], [99, end], [100, end])


def test_conversations_are_cut_only_where_that_is_exact(tokenizers: Tokenizers) -> None:
    text = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert _opener(tokenizers["chatml"], text) == "<|im_start|>"
    assert _opener(tokenizers["chatml"], "user: a") is None
    assert _opener(tokenizers["adds a beginning"], "<s>[INST] a [/INST] b </s>[INST] c [/INST] d </s>") == "</s>"
    assert _opener(tokenizers["special tokens overlap"], text) == "<|im_end|>"
    for name in ("special tokens take the space before them", "splits special tokens", "no backend"):
        assert _opener(tokenizers[name], text) is None


def test_a_prompt_that_is_no_prefix_is_warned_of_with_its_count(
    tokenizers: Tokenizers, caplog: pytest.LogCaptureFixture
) -> None:
    rows = dataset(
        {"prompt": "The New", "chosen": "ton", "rejected": "tons"},
        {"prompt": "The sky is", "chosen": " a", "rejected": " b"},
    )
    with caplog.at_level(logging.WARNING, "wishbone"):
        tokenized = tokenize_pairs(rows, tokenizers["merges across the boundary"])
    assert len(caplog.records) == 1
    assert "In 1 of 2 rows" in caplog.text
    assert tokenized["prompt_cut"][0] > 0 == tokenized["prompt_cut"][1]
    caplog.clear()
    tokenize_pairs(dataset(CHATS[0]), tokenizers["chatml"])
    assert not caplog.records


def test_a_stream_is_tokenized_as_it_is_read(chatml: PreTrainedTokenizerBase) -> None:
    rows = dataset(*CHATS)
    read = []
    stream = rows.to_iterable_dataset().map(lambda row: read.append(1) or row)
    tokenized = tokenize_pairs(stream, chatml)
    assert len(read) <= 1  # one look at the column names
    assert ids_of(tokenized) == trl_ids(rows, chatml)


def test_what_is_tokenized_stays_as_it_is(chatml: PreTrainedTokenizerBase) -> None:
    tokenized = tokenize_pairs(dataset(*CHATS), chatml)
    assert tokenize_pairs(tokenized, chatml) is tokenized
    stream = tokenized.to_iterable_dataset()
    assert tokenize_pairs(stream, chatml) is stream


def test_other_columns_and_the_order_of_rows_are_kept(chatml: PreTrainedTokenizerBase) -> None:
    rows = dataset(*(row | {"score": i} for i, row in enumerate(CHATS))).shuffle(seed=1)
    tokenized = tokenize_pairs(rows, chatml)
    assert list(tokenized["score"]) == list(rows["score"])
    assert list(tokenized["prompt"]) == list(rows["prompt"])
    assert ids_of(tokenized) == trl_ids(rows, chatml)


def test_the_result_is_cached_by_data_tokenizer_and_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset(*CHATS).save_to_disk(tmp_path / "pairs")
    first = tokenize_pairs(load_from_disk(tmp_path / "pairs"), BUILDERS["chatml"]())

    def unexpected(*_: Any) -> None:
        raise AssertionError("tokenized again")

    with monkeypatch.context() as patched:
        patched.setattr("wishbone.data.tokenize.tokenize_batch", unexpected)
        used = BUILDERS["chatml"]()
        used("state that a call leaves behind", truncation=True, max_length=2)
        again = tokenize_pairs(load_from_disk(tmp_path / "pairs"), used)
        assert ids_of(again) == ids_of(first)
        with pytest.raises(AssertionError, match="tokenized again"):
            tokenize_pairs(load_from_disk(tmp_path / "pairs").select([0]), BUILDERS["chatml"]())
    other = tokenize_pairs(load_from_disk(tmp_path / "pairs"), BUILDERS["writes the prompt differently alone"]())
    assert ids_of(other) == trl_ids(dataset(*CHATS), BUILDERS["writes the prompt differently alone"]())


def test_several_processes_give_the_same_ids(chatml: PreTrainedTokenizerBase) -> None:
    rows = dataset(*CHATS)
    assert ids_of(tokenize_pairs(rows, chatml, num_proc=2)) == ids_of(tokenize_pairs(rows, chatml))


def test_messages_need_a_template() -> None:
    tokenizer = BUILDERS["chatml"]()
    tokenizer.chat_template = None
    with pytest.raises(RequestError, match=r"no chat template.*Instruct"):
        tokenize_pairs(dataset(*CHATS), tokenizer)
    assert ids_of(tokenize_pairs(dataset(*TEXTS), tokenizer))


def test_an_end_before_white_space_is_no_reason_for_another(caplog: pytest.LogCaptureFixture) -> None:
    """So do texts end that a chat template wrote."""
    tokenizer = BUILDERS["chatml"]()
    end = tokenizer.eos_token
    row = {"prompt": "The sky is", "chosen": f" blue.{end}\n", "rejected": " green."}
    tokenized = tokenize_pairs(dataset(row), tokenizer)[0]
    whole = tokenizer.decode(tokenized["prompt_ids"] + tokenized["chosen_ids"])
    assert whole == f"The sky is blue.{end}\n"
    assert tokenizer.decode(tokenized["rejected_ids"]).endswith(f"green.{end}")
    assert "In 1 of 1 row the completion ends with the end-of-sequence token and white space" in caplog.text


def test_texts_need_an_end() -> None:
    tokenizer = BUILDERS["chatml"]()
    tokenizer.eos_token = None
    with pytest.raises(RequestError, match="no end-of-sequence"):
        tokenize_pairs(dataset(*TEXTS), tokenizer)
    tokenizer.eos_token = "<nowhere>"  # its id is that of unknown tokens, or none
    with pytest.raises(RequestError, match="'<nowhere>' is not in the tokenizer's vocabulary"):
        tokenize_pairs(dataset(*TEXTS), tokenizer)


def test_rows_the_template_refuses_are_named() -> None:
    tokenizer = BUILDERS["chatml"]()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + PLAIN_END
    )
    rows = dataset(*(CHATS[i % 2] | {"source_row": 10 + i} for i in range(30)))
    with pytest.raises(RequestError) as refused:
        tokenize_pairs(rows, tokenizer)
    assert "row 11: the chat template refuses it: no system here" in str(refused.value)
    assert "row 10:" not in str(refused.value)
    assert "and 5 more" in str(refused.value)


PLAIN_END = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "chosen": None, "rejected": "b"},
        {"prompt": "a", "chosen": [assistant("a")], "rejected": [assistant("b")]},
        {"chosen": "", "rejected": "b"},
    ],
)
def test_rows_that_are_neither_texts_nor_messages_are_named(
    chatml: PreTrainedTokenizerBase, row: dict[str, Any]
) -> None:
    with pytest.raises(RequestError, match=r"row 1: .*three texts or three lists"):
        tokenize_pairs(dataset(row), chatml)


def test_nothing_and_no_tokenizer_are_refused(chatml: PreTrainedTokenizerBase) -> None:
    with pytest.raises(RequestError, match="no rows"):
        tokenize_pairs(dataset(CHATS[0]).select([]), chatml)
    with pytest.raises(RequestError, match="not a tokenizer"):
        tokenize_pairs(dataset(CHATS[0]), object())  # type: ignore[arg-type]
