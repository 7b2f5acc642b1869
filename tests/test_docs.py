"""The documentation is true: generated parts are fresh, every example is read, every answer is the real one."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from test_layers import LAYERS
from tiny import tiny_tokenizer

from wishbone.config.load import parse_config
from wishbone.config.schema import RunConfig
from wishbone.data.formats import FORMATS, read_pairs, recognize
from wishbone.data.inspect import inspect_pairs, refuse_or_drop
from wishbone.data.source import load_pairs
from wishbone.data.tokenize import tokenize_pairs
from wishbone.errors import RequestError
from wishbone.preference import LOSSES

pytestmark = pytest.mark.documents
ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md"))]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "document_configuration.py"))
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, *languages: str) -> list[tuple[str, str, str]]:
    """Language, rest of the info string and text of each fenced block in one of the languages, in order."""
    return [match for match in FENCE.findall(page.read_text(encoding="utf-8")) if match[0] in languages]


@pytest.mark.parametrize("page", SCRIPT["PARTS"])
def test_generated_parts_are_fresh(page: str):
    text = (DOCS / page).read_text(encoding="utf-8")
    assert SCRIPT["render"](page, text) == text, "run python scripts/document_configuration.py"


def test_what_is_stale_is_seen_and_mended():
    text = (DOCS / "configuration.md").read_text(encoding="utf-8")
    stale = text.replace("| `beta` | a number above 0 | `0.1` |", "| `beta` | a number above 0 | `0.2` |")
    assert stale != text
    assert SCRIPT["render"]("configuration.md", stale) == text
    with pytest.raises(ValueError, match="has no place for fields"):
        SCRIPT["render"]("configuration.md", text.replace("<!-- generated: fields -->", ""))


def test_every_field_and_every_loss_is_there():
    configuration = (DOCS / "configuration.md").read_text(encoding="utf-8")
    for name, field in RunConfig.model_fields.items():
        section = configuration.partition(f"### {name}\n")[2].partition("\n### ")[0]
        assert field.annotation is not None
        for key in field.annotation.model_fields:
            assert f"\n| `{key}` |" in section, f"{name}.{key}"
    losses = (DOCS / "losses.md").read_text(encoding="utf-8")
    for name in LOSSES:
        assert losses.count(f"\n### {name}\n") == 1
    assert re.search(r"`dpop`.*\| `beta`, `dpop_lambda` \| yes \| reverse_kl \|", losses)
    assert re.search(r"`robust`.*\| `beta`, `label_smoothing`, `f_divergence`, `f_alpha` \| yes \| any \|", losses)
    assert re.search(r"`orpo`.*\| `orpo_lambda` \| no \| reverse_kl \|", losses)


def example_rows() -> list[tuple[str, dict[str, Any]]]:
    """Layout and row of each example below a heading that names a layout."""
    page = (DOCS / "data-formats.md").read_text(encoding="utf-8")
    sections = re.findall(r"^### `(\w+)`\n(.*?)(?=^##)", page, re.MULTILINE | re.DOTALL)
    return [(name, json.loads(text)) for name, section in sections for _, _, text in FENCE.findall(section)]


@pytest.mark.parametrize(("layout", "row"), example_rows())
def test_every_example_row_is_recognized(layout: str, row: dict[str, Any]):
    assert recognize(row).layout == layout
    pairs = read_pairs(row, layout).pairs
    assert pairs and all(pair["prompt"] and pair["chosen"] != pair["rejected"] for pair in pairs)


def test_every_layout_has_an_example():
    assert {name for name, _ in example_rows()} == set(FORMATS)


def refusals() -> list[tuple[str, str, str]]:
    """Info string and lines of each wrong file in data-formats.md, with the answer that the page gives."""
    found = blocks(DOCS / "data-formats.md", "jsonl", "text")
    assert [language for language, _, _ in found] == ["jsonl", "text"] * (len(found) // 2)
    return [(given[1], given[2], answer[2]) for given, answer in zip(found[::2], found[1::2], strict=True)]


@pytest.mark.parametrize(("setting", "lines", "answer"), refusals())
def test_wrong_rows_get_the_answer_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, lines: str, answer: str
):
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text(lines, encoding="utf-8")
    max_length = int(setting.partition("=")[2]) if setting else None
    with pytest.raises(RequestError) as refused:
        pairs = tokenize_pairs(load_pairs("pairs.jsonl"), tiny_tokenizer())
        refuse_or_drop(pairs, inspect_pairs(pairs, max_length=max_length, truncation="keep_start"), "refuse")
    assert f"{refused.value}\n" == answer


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_can_be_used(page: Path):
    wrong = SCRIPT["WRONG_CONFIGURATION"]
    for _, _, text in blocks(page, "yaml"):
        if text != wrong:
            parse_config(text)
    for _, _, text in blocks(page, "python"):
        compile(text, page.name, "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


def anchors(page: Path) -> set[str]:
    """Anchors that the headings of a page get."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_paths_of_the_listing_exist():
    listing = next(text for _, _, text in blocks(DOCS / "design.md", "text") if text.startswith("src/wishbone/"))
    folders: list[str] = []
    paths = []
    for line in listing.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [line.split()[0]]
        paths.append("".join(folders))
    assert len(paths) > 20
    assert not [path for path in paths if not (ROOT / path).exists()]
    parts = {f"src/wishbone/{path.parent.name}/" for path in (ROOT / "src" / "wishbone").glob("*/__init__.py")}
    assert parts <= set(paths), "a folder of the package is missing in the listing"


def test_layers_on_the_page_are_those_that_are_enforced():
    page = next(text for _, _, text in blocks(DOCS / "design.md", "text") if text.startswith("cli "))
    written = [set(re.split(r" {2,}", line)[0].split(", ")) for line in page.splitlines()]
    enforced = [{name.removeprefix("wishbone.") for name in layer} for layer in LAYERS if layer != ["wishbone"]]
    assert written == enforced[::-1]
