"""Text of plain values: read back by other readers, and fixed to the byte where JavaScript has to write the same."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from wishbone.config.document import read_document
from wishbone.config.emit import (
    WIDTH,
    comment,
    json_flow,
    json_text,
    number_text,
    python_literal,
    quoted,
    yaml_flow,
    yaml_number,
    yaml_string,
    yaml_text,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "emit.json").read_text(encoding="utf-8"))
ANY_TEXT = st.text(st.characters())  # surrogates, too
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)
WORDS = st.sampled_from(
    ["null", "No", "TRUE", "~", "on", "y", "1e5", "0x1f", "1:30", "2024-01-01", "=", "<<", "-", "a b", "./x"]
)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXT | WORDS
RESERVED = {"no", "on", "off", "yes", "null", "true", "false"}  # names are plain words
NAMES = st.from_regex(r"[a-z][a-z_]{0,8}[a-z]", fullmatch=True).filter(lambda name: name not in RESERVED)
MAPPINGS = st.dictionaries(NAMES, SCALARS, min_size=1, max_size=2)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.lists(MAPPINGS, max_size=2)
SECTIONS = st.dictionaries(NAMES, VALUES, min_size=1, max_size=4)
DOCUMENTS = st.dictionaries(NAMES, VALUES | SECTIONS, min_size=1, max_size=5)


@pytest.mark.parametrize("vector", VECTORS["numbers"], ids=lambda vector: vector["text"])
def test_numbers_as_written_down(vector: dict[str, Any]):
    assert number_text(vector["number"]) == vector["text"]
    assert yaml_number(vector["number"]) == vector.get("yaml", vector["text"])


@pytest.mark.parametrize("vector", VECTORS["strings"], ids=lambda vector: vector["yaml"])
def test_strings_as_written_down(vector: dict[str, Any]):
    text = "".join(map(chr, vector["points"]))
    assert yaml_string(text) == vector["yaml"]
    assert quoted(text) == vector["python"]
    assert json_flow(text) == vector["json"]


@pytest.mark.parametrize("vector", VECTORS["comments"], ids=lambda vector: vector["lines"][0])
def test_comments_as_written_down(vector: dict[str, Any]):
    assert comment("".join(map(chr, vector["points"])), vector["indent"]) == vector["lines"]


@given(NUMBERS)
@example(2**53)
@example(2.0**53 + 2)
@example(5e-324)
@example(-0.0)
def test_numbers_are_read_back_the_same(number: float):
    text = number_text(number)
    assert float(text) == json.loads(text) == ast.literal_eval(text) == number
    assert yaml.safe_load(yaml_number(number)) == number
    assert read_document(yaml_number(number)).value == number
    assert "e+" not in text and "e0" not in text and "e-0" not in text


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_finite_number_has_no_text(number: float):
    with pytest.raises(ValueError, match="not a finite number"):
        number_text(number)


@given(ANY_TEXT)
def test_any_string_is_a_literal_of_python_and_of_json(text: str):
    assert ast.literal_eval(quoted(text)) == text
    assert quoted(text).isascii() and quoted(text).isprintable()
    assert json_flow(text).isascii()
    if not any("\ud800" <= letter <= "\udfff" for letter in text):  # a pair of surrogates is one character in JSON
        assert json.loads(json_flow(text)) == text


@given(TEXT | WORDS)
def test_any_string_is_the_same_string_in_yaml(text: str):
    assert yaml.safe_load(f"a: {yaml_string(text)}") == {"a": text}
    assert yaml.safe_load(f"[{yaml_string(text)}]") == [text]
    assert read_document(yaml_string(text)).value == text


@pytest.mark.slow
@given(DOCUMENTS)
def test_documents_are_read_back_the_same(document: dict[str, Any]):
    assert yaml.safe_load(yaml_text(document)) == document
    assert read_document(yaml_text(document)).value == document
    assert json.loads(json_text(document)) == read_document(json_text(document)).value == document
    assert yaml_text(document).isascii() and json_text(document).isascii()


@pytest.mark.slow
@given(DOCUMENTS, ANY_TEXT, ANY_TEXT)
def test_comments_change_nothing(document: dict[str, Any], head: str, said: str):
    name = next(iter(document))
    inner = document[name]
    path = f"{name}.{next(iter(inner))}" if isinstance(inner, dict) else name
    assert yaml.safe_load(yaml_text(document, {"": head, path: said})) == document


@pytest.mark.slow
@given(VALUES)
def test_values_on_one_line(value: Any):
    assert ast.literal_eval(python_literal(value)) == value
    assert json.loads(json_flow(value)) == value
    assert yaml.safe_load(yaml_flow(value)) == value


@given(ANY_TEXT, st.integers(0, 8))
def test_comments_are_comments_and_keep_every_word(text: str, indent: int):
    lines = comment(text, indent)
    assert all(line.startswith(" " * indent + "#") and line.isascii() and line.isprintable() for line in lines)
    assert ast.parse("\n".join(lines)).body == []
    longest = max(len(word) for word in " ".join(line[indent + 2 :] for line in lines).split(" "))
    assert all(len(line) <= max(WIDTH, indent + 2 + longest) for line in lines)


def test_a_document_as_a_person_reads_it():
    document = {"model": {"name": "m", "list": ["a", 1]}, "top": None}
    assert yaml_text(document, {"": "head", "model.list": "why", "top": "above"}) == (
        "# head\nmodel:\n  name: m\n  # why\n  list: [a, 1]\n# above\ntop: null\n"
    )
    assert json_text(document) == ('{\n  "model": {\n    "name": "m",\n    "list": ["a", 1]\n  },\n  "top": null\n}\n')
