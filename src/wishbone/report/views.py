"""Views of a run that say what it does: pairs as the model sees them, memory, the guard, what to do next.

`report.html` and the board show the same ones. Everything comes from files of the run directory, whose values may be
anything.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from wishbone.report.guard import LONGEST_TEXT, alarms
from wishbone.report.markup import Markup, element, join
from wishbone.report.run_directory import CONFIG, RunRecord

MOST_TOKENS, MOST_TOKEN_LETTERS, MOST_PAIRS = 400, 200, 8
MOST_PROMPTS, MOST_VERSIONS = 4, 40
BAR, ROW = 320, 12
"""Width of a bar and its height, in units of its picture."""
NEXT = (
    ("chat {run}", "Talk to what the run learned."),
    ("compare {run}", "More answers before and after, side by side."),
    ("eval {run} OTHER-PAIRS.jsonl", "Measure it on other pairs, with confidence intervals."),
    (
        "export {run} --gguf model.gguf",
        "One file for llama.cpp and Ollama; --merged for transformers, --vllm for vLLM.",
    ),
    ("push {run} OWNER/NAME", "Publish it with a model card."),
)
WITH_IMAGES = ("export {run} --merged DIR", "The whole model with its processor for transformers; --vllm for vLLM.")
"""In the place of `--gguf`: such a file would hold the language model without its tower."""
CONTINUES = "The run is not done. Where it was stopped, this continues it from its last checkpoint."


def section(title: str, *content: str | None) -> Markup:
    """Return a section with its heading."""
    return element("section", element("h2", title), *content)


def pairs(record: RunRecord) -> Markup | None:
    """The first pairs, token by token; what is trained is marked."""
    shown = [drawn for pair in record.pairs[:MOST_PAIRS] if (drawn := _pair(pair))]
    if not shown:
        return None
    note = element(
        "p",
        "The first pairs after the chat template, one frame a token. The prompt is only read; tokens of both "
        "answers are trained, the chosen ones up, the rejected ones down.",
        class_="hint",
    )
    return section("Pairs as the model sees them", note, *shown)


def _pair(pair: Mapping[str, Any]) -> Markup | None:
    sides = {name: _texts(pair.get(name)) for name in ("prompt", "chosen", "rejected")}
    lengths = pair.get("lengths")
    if not any(sides.values()):
        return None
    counts = lengths if isinstance(lengths, list) and len(lengths) == 3 else [len(texts) for texts in sides.values()]
    counts = [count if isinstance(count, int) and 0 <= count < 10**9 else 0 for count in counts]
    rows = []
    for (name, texts), count in zip(sides.items(), counts, strict=True):
        tokens_of = f"{count:,} token{'' if count == 1 else 's'}"
        more = f", the first {MOST_TOKENS:,} shown" if texts and count > MOST_TOKENS else ""
        rows.append(element("h4", f"{name}, {tokens_of}{more}"))
        tokens = [element("span", text) for text in texts]
        rows.append(element("div", *tokens, class_=f"tokens {name}", dir="auto"))
    return element(
        "article", element("h3", "Held-out pair" if pair.get("heldout") is True else "Training pair"),
        _row_picture(counts), *rows,
    )  # fmt: skip


def _row_picture(counts: Sequence[int]) -> Markup | None:
    """Prompt, chosen and rejected as they lie in a row, to scale."""
    total = sum(counts)
    if not total:
        return None
    parts, at = [], 0.0
    for name, count in zip(("prompt", "chosen", "rejected"), counts, strict=True):
        width = BAR * count / total
        parts.append(element("rect", element("title", f"{name}: {count:,} tokens"), x=at, y=0, width=width,
                             height=ROW, class_=f"part {name}"))  # fmt: skip
        at += width
    said = f"A row: prompt {counts[0]:,}, chosen {counts[1]:,}, rejected {counts[2]:,} tokens."
    return element("svg", element("title", said), *parts, viewBox=f"0 0 {BAR} {ROW}", class_="row", role="img",
                   preserveAspectRatio="none")  # fmt: skip


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list):
        return []
    return [text[:MOST_TOKEN_LETTERS] for text in value[:MOST_TOKENS] if isinstance(text, str)]


def memory(record: RunRecord) -> Markup | None:
    """What was planned for the largest row, by item, and the peak that was measured."""
    planned = record.summary.get("memory_plan")
    planned = planned if isinstance(planned, dict) else {}
    items = planned.get("items")
    sizes = {str(name)[:80]: size for name, size in items.items() if _size(size)} if isinstance(items, dict) else {}
    measured = [value for _, value in record.metrics.get("memory_gib", []) if math.isfinite(value)]
    peak = record.summary.get("peak_memory_gib")
    peaks = [*measured, *([peak] if _size(peak) else [])]
    limit = planned.get("limit")
    if not sizes and not peaks:
        return None
    total = sum(sizes.values())
    scale = max([total, *peaks, limit if _size(limit) else 0, 1e-9])
    rows, at = [], 0.0
    for name, size in sizes.items():
        rows.append(_bar(name, size, at / scale, size / scale, "item"))
        at += size
    if sizes:
        rows.append(_bar("planned, largest row", total, 0, total / scale, "total"))
    if peaks:
        so_far = "" if record.status == "done" else " so far"
        rows.append(_bar(f"measured peak{so_far}", max(peaks), 0, max(peaks) / scale, "measured"))
    if _size(limit):
        rows.append(_bar("may be used", limit, 0, limit / scale, "limit"))
    head = element("tr", *(element("th", name, scope="col") for name in ("Memory", "GiB", "")))
    table = element("table", element("thead", head), element("tbody", *rows), class_="numbers memory")
    return section("Memory", element("div", table, class_="wide"))


def _bar(name: str, size: float, start: float, share: float, kind: str) -> Markup:
    rect = element("rect", x=BAR * start, y=0, width=max(BAR * share, 1.0), height=ROW, class_=kind)
    picture = element("svg", rect, viewBox=f"0 0 {BAR} {ROW}", aria_hidden="true", preserveAspectRatio="none")
    return element(
        "tr", element("th", name, scope="row"), element("td", f"{size:.2f}"), element("td", picture, class_="bar")
    )


def _size(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9


def guard(record: RunRecord) -> Markup | None:
    """What the guard saw: alarms, notes, and answers that changed while the run trained."""
    events = [
        element(
            "li",
            element("strong", f"Step {alarm['step']:,}: {alarm['title']}. "),
            f"Since step {alarm['since']:,}: {alarm['seen']}. {alarm['action']}",
            element("span", alarm["advice"], class_="remedy"),
            class_=alarm["severity"],
        )
        for alarm in alarms(record)
    ]
    for row in record.guard:
        text, step = row.get("text"), row.get("step")
        if row.get("kind") == "note" and isinstance(text, str) and isinstance(step, int):
            head = element("strong", f"Step {step:,}: ")
            events.append(element("li", head, text[:LONGEST_TEXT], class_="note"))
    measured = sum(row.get("kind") == "measurement" for row in record.guard)
    if not record.guard:
        return None
    said = f"{measured:,} measurement{'' if measured == 1 else 's'} so far; " + (
        "what they showed:" if events else "nothing unusual."
    )
    shown = element("ul", *events, class_="findings") if events else None
    return section("Guard", element("p", said, class_="hint"), shown)


def answers_over_time(record: RunRecord) -> Markup | None:
    """The same prompts answered while the run trained; an answer that did not change is left out."""
    told: dict[str, list[tuple[int, str]]] = {}
    for row in record.guard:
        prompts, answers, step = row.get("prompts"), row.get("answers"), row.get("step")
        if row.get("kind") != "answers" or not isinstance(step, int):
            continue
        if not isinstance(prompts, list) or not isinstance(answers, list):
            continue
        for prompt, answer in zip(prompts, answers, strict=False):
            if isinstance(prompt, str) and isinstance(answer, str):
                versions = told.setdefault(prompt[:LONGEST_TEXT], [])
                if not versions or versions[-1][1] != answer[:LONGEST_TEXT]:
                    versions.append((step, answer[:LONGEST_TEXT]))
    if not told:
        return None
    shown = [
        element(
            "article",
            element("div", element("h4", "prompt"), element("div", prompt, class_="prose", dir="auto"), class_="turn"),
            element("dl", *(_version(step, text) for step, text in versions[-MOST_VERSIONS:]), class_="versions"),
        )
        for prompt, versions in list(told.items())[:MOST_PROMPTS]
    ]
    note = element(
        "p", "Greedy answers that the guard asked for; each stands at the step at which it changed.", class_="hint"
    )
    return section("Answers while it trained", note, *shown)


def _version(step: int, text: str) -> Markup:
    said = text if text.strip() else "(empty)"
    return join(element("dt", f"step {step:,}"), element("dd", said, class_="prose", dir="auto"))


def next_steps(record: RunRecord) -> Markup:
    """Commands that use the result, or that continue a run that has none."""
    name = shlex.quote(str(record.path))
    if record.status == "starting":
        said = "The run reads its pairs and its model, and measures the held-out pairs. Curves follow."
        return section("What next", element("p", said, class_="hint"))
    if record.status != "done":
        file = shlex.quote(str(record.path / CONFIG))
        command = element("li", element("code", f"wishbone train {file} --resume"), element("small", CONTINUES))
        return section("What next", element("ul", command, class_="next"))
    rows = [
        element("li", element("code", f"wishbone {command.format(run=name)}"), element("small", what))
        for command, what in (
            WITH_IMAGES if "--gguf" in step[0] and record.summary.get("images") else step for step in NEXT
        )
    ]
    return section("What next", element("ul", *rows, class_="next"))
