"""Faults of single pairs, each against a pair that has it and the nearest one that does not."""

from __future__ import annotations

from typing import Any

import pytest

from wishbone.check.kinds import KINDS
from wishbone.check.pair_faults import nearly_same, pair_faults
from wishbone.check.special_tokens import SpecialTokens

Messages = list[dict[str, Any]]
ESSAY = " ".join(f"word{number}" for number in range(200))


def said(*turns: tuple[str, str]) -> Messages:
    return [{"role": role, "content": text} for role, text in turns]


def pair(prompt: Any = None, chosen: Any = None, rejected: Any = None) -> dict[str, Any]:
    return {
        "prompt": said(("user", "Is Pluto a planet?")) if prompt is None else prompt,
        "chosen": said(("assistant", "No, a dwarf planet.")) if chosen is None else chosen,
        "rejected": said(("assistant", "Many people ask that, and for good reason.")) if rejected is None else rejected,
    }


def faults(*sides: Any, special: SpecialTokens | None = None) -> set[str]:
    found = pair_faults(pair(*sides), special or SpecialTokens())
    assert found.keys() <= KINDS.keys()
    return set(found)


CALL = [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}]
RESULT = [*CALL, *said(("tool", "42"), ("assistant", "It is 42."))]


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ((), set()),
        (("The sky is", " blue.", " green and full of fish."), set()),
        ((None, said(("assistant", " \n\t"))), {"empty"}),
        ((None, CALL), set()),
        ((None, [{"role": "assistant", "tool_calls": CALL[0]["tool_calls"]}]), set()),  # without content, as OpenAI's
        (("The sky is", "", " green."), {"empty"}),
        ((None, said(("assistant", "Same.")), said(("assistant", "Same."))), {"identical"}),
        ((None, said(("assistant", "Same.")), said(("assistant", "Different entirely!"))), set()),
        ((said(("user", " ")),), {"blank_prompt"}),
        (("", " blue.", " green and full of fish."), {"blank_prompt"}),
        ((None, said(("assistant", "One."), ("user", "And?"), ("assistant", "Two."))), {"more_speakers"}),
        ((None, RESULT), set()),
        ((said(("user", "Hi"), ("assistant", "Hello")),), {"answered"}),
        ((said(("user", "Hi"), ("user", "Anybody?")),), {"same_speaker"}),
        ((said(("user", "Hi"), ("assistant", "Hello"), ("user", "How?")),), set()),
        ((said(("user", "Hi"), ("system", "Be brief.")),), {"late_system"}),
        ((said(("system", "Be brief."), ("user", "Hi")),), set()),
        ((None, said(("assistant", "No.<|im_end|>"))), {"special_tokens"}),
        ((None, said(("assistant", "In F#, a <| f |> b, and 1 <|> 2."))), set()),
        ((None, said(("assistant", "Use <s>old</s> for what is out of date."))), set()),
        ((None, said(("assistant", "No.</s>"))), {"special_tokens"}),
        (("[INST] Hi [/INST]", " Hello.", " Go away, and never return."), {"special_tokens"}),
    ],
)
def test_each_fault_is_seen_where_it_is(sides: tuple[Any, ...], expected: set[str]) -> None:
    assert faults(*sides) == expected


def test_special_tokens_of_a_tokenizer() -> None:
    own = SpecialTokens(["<END>", "[B]"], ends=["<END>"])
    assert faults(None, said(("assistant", "No.<END>")), special=own) == {"special_tokens"}
    assert faults(None, said(("assistant", "No.<END>"))) == set()
    assert faults("The sky is", " blue.<END>", " green and full of fish.<END>", special=own) == set()
    assert faults("The sky is", " bl<END>ue.", " green and full of fish.", special=own) == {"special_tokens"}
    found = pair_faults(pair(None, said(("assistant", "a [B] c"))), own)
    assert found == {"special_tokens": "[B]"}


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (ESSAY, ESSAY + " more", True),
        (ESSAY, ESSAY.replace("word50 ", "word51 "), True),
        (ESSAY, ESSAY.replace(" ", "  "), True),
        (ESSAY, " ".join(reversed(ESSAY.split())), True),
        (ESSAY, ESSAY.upper(), False),
        (ESSAY, ESSAY[: len(ESSAY) // 2], False),
        ("Yes.", "No.", False),
        ("\u4e2d\u6587" * 100, "\u4e2d\u6587" * 100 + "\u3002", True),
        ("\u4e2d\u6587" * 100, "\u6587\u4e2d\u5b57" * 66, False),
    ],
)
def test_nearly_the_same(one: str, other: str, expected: bool) -> None:
    assert nearly_same(one, other) is expected
    assert nearly_same(other, one) is expected
