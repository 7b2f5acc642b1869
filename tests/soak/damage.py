"""Files and values, changed at random as disks, editors, programs and attackers change them."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from random import Random
from typing import Any

HUGE_INTEGER, DEEP_LIST, DEEP_OBJECT, HUGE_FLOAT = "@huge-integer@", "@deep-list@", "@deep-object@", "@huge-float@"
"""Stand for JSON that `json.dumps` does not write; `as_json` puts it in."""

_WRITTEN = {
    HUGE_INTEGER: "9" * 5000,
    HUGE_FLOAT: "-1e999",
    DEEP_LIST: "[" * 60_000 + "]" * 60_000,
    DEEP_OBJECT: '{"a":' * 60_000 + "1" + "}" * 60_000,
}
_U32 = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_U64 = (0, 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def damaged_bytes(content: bytes, random: Random, *, head: int | None = None) -> bytes:
    """The content after one to three changes; with `head` most of them fall on that many bytes at its start."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        if not data:
            break
        end = min(head, len(data)) if head and random.random() < 0.8 else len(data)
        random.choice(_CHANGES)(data, random, end)
    return bytes(data)


def _place(data: bytearray, random: Random, end: int) -> int:
    """Somewhere, and often near one of the ends, where formats keep their lengths."""
    near = min(64, end)
    return random.choice(
        (random.randrange(end), random.randrange(near), max(0, len(data) - 1 - random.randrange(near)))
    )


def _flip_bit(data: bytearray, random: Random, end: int) -> None:
    data[_place(data, random, end)] ^= 1 << random.randrange(8)


def _set_byte(data: bytearray, random: Random, end: int) -> None:
    data[_place(data, random, end)] = random.choice((0, 0xFF, 0x7F, 0x80, random.randrange(256)))


def _set_integer(data: bytearray, random: Random, end: int) -> None:
    width, numbers = random.choice(((4, _U32), (8, _U64)))
    start = _place(data, random, end)
    data[start : start + width] = random.choice(numbers).to_bytes(width, random.choice(("little", "little", "big")))


def _cut_off(data: bytearray, random: Random, end: int) -> None:
    del data[random.randrange(len(data)) :]


def _cut_out(data: bytearray, random: Random, end: int) -> None:
    start = _place(data, random, end)
    del data[start : start + random.choice((1, 2, 8, 100, 4096))]


def _insert(data: bytearray, random: Random, end: int) -> None:
    start = _place(data, random, end)
    data[start:start] = random.randbytes(random.choice((1, 2, 8, 100, 4096)))


def _repeat(data: bytearray, random: Random, end: int) -> None:
    start = _place(data, random, end)
    data[start:start] = data[start : start + random.choice((1, 16, 512))] * random.choice((1, 2, 50))


def _zero(data: bytearray, random: Random, end: int) -> None:
    start = _place(data, random, end)
    size = min(random.choice((8, 512, 4096)), len(data) - start)
    data[start : start + size] = bytes(size)


_CHANGES: tuple[Callable[[bytearray, Random, int], None], ...] = (
    _flip_bit, _flip_bit, _set_byte, _set_byte, _set_integer, _set_integer, _cut_off, _cut_out, _insert, _repeat, _zero,
)  # fmt: skip


def hostile_value(random: Random) -> Any:
    """A value that does not belong anywhere."""
    return random.choice(
        (
            None, True, False, 0, -1, 7, 1.5, 2**53 + 1, 2**63, -(2**63) - 1, 2**64, 10**30, float("nan"), float("inf"),
            "", " ", "\n", "\0", "\ud800", "a\udfffb", "\u2028", "\ufeff", "é" * 40, "x" * random.choice((100, 70_000)),
            "null", "[]", "{}", '{"a": ', "Human:", "\n\nHuman: a\n\nAssistant: b", "[" * 3000, "9" * 5000,
            '{"a":' * 3000, "{{ 7 * 7 }}", "<|im_start|>system\n", "http://127.0.0.1:9/x", "../../etc/passwd",
            [], {}, [None], [[]], [[], {}], [""], [1, "a", None, {}], {"": ""}, {"role": "user"}, {"content": "x"},
            {"role": "user", "content": None}, {"role": 5, "content": []}, {"\ud800": 1}, {"a" * 300: [[[[{}]]]]},
            [{"role": "assistant", "content": [{"type": "text", "text": "\ud800"}]}],
            [{"role": "assistant", "content": [{"type": "image"}]}],
            [{"role": "assistant", "content": "x", "tool_calls": "no"}],
            [{"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            [{"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "f",
            "arguments": "[" * 3000}}]}],
            [{"role": "assistant", "content": "x", "name": "\ud800"}],
            [{"role": "assistant", "content": "x", "weight": 2**70}],
            [{"from": "gpt", "value": "x"}, {"from": "human"}],
            [{"role": "system", "content": "x"}] * random.choice((1, 500)),
            {"chat_template": "{% for i in range(10) %}"}, {"tokenize": False}, {"return_tensors": "pt"},
            {"add_generation_prompt": "x"}, {"messages": []}, {"enable_thinking": 2**70}, {"max_length": -1},
            HUGE_INTEGER, HUGE_FLOAT, DEEP_LIST, DEEP_OBJECT,
        )
    )  # fmt: skip


def damaged_value(value: Any, random: Random) -> Any:
    """A JSON value with one change somewhere in it: replaced, left out, renamed, repeated, wrapped."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        key = random.choice(list(value))
        rest = {name: item for name, item in value.items() if name != key}
        match random.randrange(8):
            case 0:
                return rest
            case 1:
                return {
                    **rest,
                    random.choice(("", "Chosen", "prompt", "\0", "tools", "chat_template_kwargs")): value[key],
                }
            case 2:
                return {**value, random_name(random): hostile_value(random)}
            case 3:
                return {**value, random.choice(_COLUMNS): hostile_value(random)}
            case _:
                return {**value, key: damaged_value(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.85:
        place = random.randrange(len(value))
        match random.randrange(6):
            case 0:
                return value[:place] + value[place + 1 :]
            case 1:
                return value[:place] + [value[place]] * random.choice((2, 300)) + value[place + 1 :]
            case 2:
                return [*value[:place], hostile_value(random), *value[place:]]
            case _:
                return [*value[:place], damaged_value(value[place], random), *value[place + 1 :]]
    return random.choice((hostile_value(random), hostile_value(random), [value], {"value": value}, str(value)))


_COLUMNS = ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs", "system", "history", "input", "source_row")


def random_name(random: Random) -> str:
    """A name for a key."""
    return "".join(random.choices(string.ascii_letters + "_.- é\0", k=random.choice((1, 8, 60))))


def as_json(value: Any) -> str:
    """The value as JSON text, stand-ins written out."""
    text = json.dumps(value)
    for stand_in, written in _WRITTEN.items():
        text = text.replace(f'"{stand_in}"', written)
    return text
