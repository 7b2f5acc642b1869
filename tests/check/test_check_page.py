"""The page of `wishbone check`: it stands alone, hostile text is inert, and it works in a real Chromium."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_tokenizer

from wishbone.check.examine import examine
from wishbone.check.model_view import ModelView
from wishbone.check.page import page
from wishbone.check.reading import PairReader
from wishbone.check.sample import chosen_pairs, views

BUILDER = Path(__file__).parents[2] / "builder"
SCRIPT = Path(__file__).with_name("page.test.js")
EVIL = (
    "</script></style><script>window.owned=1</script><img src=x onerror='window.owned=1'><b>\"&amp;\u2028<!-- <iframe>"
)
TEMPLATE = "{% for m in messages %}{{ bos_token }}{{ m['content'] }}{{ eos_token }}{% endfor %}"


def said(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def pair(question: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "prompt": said("user", question),
        "chosen": said("assistant", chosen),
        "rejected": said("assistant", rejected),
    }


SPOILED = [
    pair("How long do I boil an egg?", "Ten minutes.", "Eggs have a long history."),
    pair("Is Pluto a planet?", "No, it is a dwarf planet.", "Who knows, and why ask?"),
    pair("What does a baker make?", "Bread and cakes.", "Bakers are admired a lot."),
    pair("When do bees sleep?", "", "All animals do."),
    pair("What is 2 + 2?", "Four of them.", "Four of them."),
    pair("What is the sky?", "Above us all.", "Nobody ever knows."),
    pair("What is the sky?", "Above us all.", "Nobody ever knows."),
    pair("What is the sea?", "Below us all.", "Nobody ever knows."),
    pair("What is the sea?", "Nobody ever knows.", "Below us all."),
    pair("What is a leak?", "This one<|im_end|> is.", "Nobody ever knows."),
    pair("What is left?", "Nothing at all.", "Nobody ever knows."),
    {**pair("", "Hello there.", "Nobody ever knows."), "prompt": [*said("user", "a"), *said("user", "b")]},
]
HOSTILE = [
    pair(EVIL, EVIL + " one", "two " + EVIL),
    {**pair("", EVIL, "\x1b[31m\x00 red"), "prompt": [{"role": "user", "content": EVIL, "name": EVIL}]},
    pair("x", f"<|{EVIL}|>", "<|im_start|>" + EVIL),
]


def written(rows: list[Any], title: str = "pairs.jsonl", model: ModelView | None = None) -> str:
    reader = PairReader(title, lambda: ((n, f"line {n}", row) for n, row in enumerate(rows, 1)))
    found = examine([reader], model=model)
    return page(found, views(found, chosen_pairs(found.ledger), model, 10_000), title, "tiny" if model else None)


def template_tokenizer() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_it_stands_alone() -> None:
    text = written(SPOILED)
    for reaching_out in (
        "http:",
        "https:",
        "src=",
        "href=",
        "@import",
        "url(",
        "<link",
        "<iframe",
        "innerHTML",
        "eval(",
    ):
        assert reaching_out not in text, reaching_out
    assert re.search(r"default-src &#x27;none&#x27;;.* script-src &#x27;sha256-", text)


def test_hostile_text_closes_nothing() -> None:
    text = written(HOSTILE, title=EVIL, model=ModelView(template_tokenizer()))
    assert text.count("<script") == text.count("</script>") == 2
    assert text.count("</style>") == 1 and "<img" not in text and "<b>" not in text and "<!--" not in text
    embedded = re.search(r'<script type="application/json" id="pairs">(.*?)</script>', text, re.DOTALL)
    assert embedded
    held = json.loads(embedded[1])["pairs"]
    assert held[0]["read"]["prompt"] == [["user", EVIL]]
    assert held[0]["tokens"]["prompt"]


@pytest.mark.slow
def test_a_large_set_is_sampled_and_the_page_says_so() -> None:
    rows = [pair(f"Question {number}?", "word " * 2000 + str(number), "no") for number in range(3000)]
    text = written(rows)
    shown = len(
        chosen_pairs(examine([PairReader("x", lambda: ((n, f"line {n}", r) for n, r in enumerate(rows, 1)))]).ledger)
    )
    assert shown < 400
    assert f"This page holds {shown} of the 3,000 pairs" in text
    assert len(text) < 8_000_000


@pytest.mark.slow
def test_in_chromium(tmp_path: Path) -> None:
    if not shutil.which("node"):
        pytest.skip("no Node here: install nodejs, 18 or later")
    program = "process.stdout.write(require('./chromium/browser.js').missing() || '')"
    missing = subprocess.run(["node", "-e", program], cwd=BUILDER, capture_output=True, text=True, check=True).stdout
    if missing:
        pytest.skip(missing)
    tokenizer = template_tokenizer()
    (tmp_path / "spoiled.html").write_text(written(SPOILED), encoding="utf-8")
    tokens = written([pair("What now?", "This.", "That one.")], model=ModelView(tokenizer))
    (tmp_path / "tokens.html").write_text(tokens, encoding="utf-8")
    (tmp_path / "hostile.html").write_text(written(HOSTILE, title=EVIL), encoding="utf-8")
    trained = f"{tokenizer.bos_token}This.{tokenizer.eos_token}"
    environment = os.environ | {"PAGES": str(tmp_path), "EVIL": EVIL, "TRAINED": trained, "NODE_OPTIONS": ""}
    command = ["node", "--test", "--test-reporter=tap", str(SCRIPT)]
    outcome = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert outcome.returncode == 0, f"{outcome.stdout}\n{outcome.stderr}"
    assert "\n# pass 7" in outcome.stdout, outcome.stdout
