from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_run import WriteRun

from wishbone.errors import RequestError
from wishbone.report import views
from wishbone.report.html import write_report
from wishbone.report.run_directory import RunRecord

EVIL = "</style></script><script>alert(1)</script><img src=x onerror=alert(2)>\"' & &amp; [bold]\x1b[31m\x00\x9b\ud800"
VOID = {"meta", "br", "hr"}


@dataclass
class Node:
    name: str
    attributes: dict[str, str]
    children: list[Node] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def all(self, name: str, class_: str | None = None) -> list[Node]:
        """Every descendant of a name, and of a class where one is given."""
        own = [c for c in self.children if c.name == name and class_ in (None, *c.attributes.get("class", "").split())]
        return own + [found for child in self.children for found in child.all(name, class_)]

    @property
    def text(self) -> str:
        return "".join(self.texts + [child.text for child in self.children])


class Tree(HTMLParser):
    """Builds the tree of a page and refuses one whose elements are not properly nested."""

    def __init__(self) -> None:
        super().__init__()
        self.open = [Node("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().name == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].texts.append(data)


def parsed(report: Path) -> Node:
    tree = Tree()
    tree.feed(report.read_text(encoding="utf-8"))
    tree.close()
    assert len(tree.open) == 1
    return tree.open[0]


def chart(page: Node, title: str) -> Node:
    return next(figure for figure in page.all("figure") if figure.all("h3")[0].text == title)


def picture(figure: Node) -> Node:
    return next(svg for svg in figure.all("svg") if svg.attributes.get("role") == "img")


def places(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", path)]


def test_the_page_stands_alone(write_run: WriteRun) -> None:
    report = write_report(write_run())
    text = report.read_text(encoding="utf-8")
    for reaching_out in ("http:", "https:", "src=", "href=", "@import", "url(", "<script", "<link", "<iframe"):
        assert reaching_out not in text, reaching_out
    policy = next(meta for meta in parsed(report).all("meta") if "http-equiv" in meta.attributes)
    assert policy.attributes["content"].startswith("default-src 'none'")


def test_tables_and_charts_say_what_they_are(write_run: WriteRun) -> None:
    page = parsed(write_report(write_run()))
    assert page.all("html")[0].attributes["lang"] == "en"
    assert page.all("h1")[0].text == "run"
    assert all(cell.attributes.get("scope") in {"row", "col"} for cell in page.all("th"))
    figures = page.all("figure")
    assert len(figures) == 8
    ids = [node.attributes["id"] for svg in page.all("svg") for node in svg.all("title") + svg.all("desc")
           if "id" in node.attributes]  # fmt: skip
    assert len(ids) == len(set(ids)) == 16
    for figure in figures:
        svg = picture(figure)
        assert set(svg.attributes["aria-labelledby"].split()) <= set(ids)
        assert len(svg.all("desc")[0].text) > 20
        legend = [entry.text for entry in figure.all("li")]
        assert legend[0] in {"training", "chosen"}


def test_the_result_table_holds_the_numbers_of_the_summary(write_run: WriteRun) -> None:
    run = write_run()
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    rows = parsed(write_report(run)).all("table", "numbers")[0].all("tbody")[0].all("tr")
    shown = {row.all("th")[0].texts[0]: [cell.text for cell in row.all("td")] for row in rows}
    after = summary["heldout_after"]
    assert shown["Loss"][:2] == ["0.6931", f"{after['loss']:.4f}"]
    assert shown["Accuracy"][1] == f"{100 * after['rewards/accuracies']:.1f} %"


def test_the_table_of_fused_parts_holds_what_the_summary_says(write_run: WriteRun) -> None:
    run = write_run()
    assert "Fused parts" not in [title.text for title in parsed(write_report(run)).all("h2")]
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    summary["fused_parts"] = [
        {"part": "norm", "layers": 65, "fused": 65, "why_not": []},
        {"part": "MLP", "layers": 32, "fused": 30, "why_not": [{"reason": "no <gate>", "layers": 2}, EVIL]},
        EVIL,
        {"part": EVIL, "why_not": EVIL},
    ]
    (run / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    sections = parsed(write_report(run)).all("section")
    (table,) = next(one for one in sections if one.all("h2") and one.all("h2")[0].text == "Fused parts").all("table")
    rows = [[cell.text for cell in row.all("th") + row.all("td")] for row in table.all("tbody")[0].all("tr")]
    assert rows[:2] == [["norm", "65 of 65", "\u2013"], ["MLP", "30 of 32", "no <gate> (2)"]]
    assert len(rows) == 3 and "<script>" in rows[2][0] and rows[2][1:] == ["\u2013 of \u2013", "\u2013"]


def test_points_are_drawn_where_the_axes_say(write_run: WriteRun) -> None:
    """Two ticks of each axis give the scale; line and held-out dots must lie on it."""
    run = write_run()
    lines = [{"step": step, "loss": loss} for step, loss in ((10, 0.5), (20, 0.25), (40, 1.0))]
    lines += [{"step": 30, "eval_loss": 0.75}, {"step": 40, "eval_loss": 0.8}]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    figure = chart(parsed(write_report(run)), "Loss")
    svg = picture(figure)
    labels = [node for node in svg.all("text") if re.fullmatch(r"[\d.]+", node.text)]
    y_ticks = {float(n.text): float(n.attributes["y"]) - 4 for n in labels if n.attributes["text-anchor"] == "end"}
    x_ticks = {float(n.text): float(n.attributes["x"]) for n in labels if n.attributes["text-anchor"] == "middle"}

    def at(ticks: dict[float, float], value: float) -> float:
        (a, pixel_a), *_, (b, pixel_b) = sorted(ticks.items())
        return pixel_a + (value - a) * (pixel_b - pixel_a) / (b - a)

    drawn = places(svg.all("path")[0].attributes["d"])
    assert drawn == [
        (pytest.approx(at(x_ticks, step), abs=0.1), pytest.approx(at(y_ticks, loss), abs=0.1))
        for step, loss in ((10, 0.5), (20, 0.25), (40, 1.0))
    ]
    dots = [(float(dot.attributes["cx"]), float(dot.attributes["cy"])) for dot in svg.all("circle")]
    assert dots == [
        (pytest.approx(at(x_ticks, step), abs=0.1), pytest.approx(at(y_ticks, loss), abs=0.1))
        for step, loss in ((30, 0.75), (40, 0.8))
    ]
    assert [dot.all("title")[0].text for dot in svg.all("circle")] == [
        "held out, step 30: 0.7500",
        "held out, step 40: 0.8000",
    ]


def test_nothing_is_drawn_outside_the_axes(write_run: WriteRun) -> None:
    for figure in parsed(write_report(write_run(steps=400, every=50, collapse=True))).all("figure"):
        for path in picture(figure).all("path"):
            for x, y in places(path.attributes["d"]):
                assert 62 <= x <= 420
                assert 12 <= y <= 208


def test_values_that_are_not_finite_leave_a_gap_and_a_mark(write_run: WriteRun) -> None:
    run = write_run()
    losses = ["0.7", "0.6", "NaN", "null", "0.5", "-Infinity"]
    text = "".join(f'{{"step": {step}, "loss": {loss}}}\n' for step, loss in enumerate(losses, 1))
    (run / "metrics.jsonl").write_text(text, encoding="utf-8")
    page = parsed(write_report(run))
    svg = picture(chart(page, "Loss"))
    marks, line = (path.attributes["d"] for path in svg.all("path"))
    assert line.count("M") == 2
    assert len(places(line)) == 3
    assert marks.count("M") == 3
    assert "not a finite number" in [entry.text for entry in chart(page, "Loss").all("li")]
    assert page.all("li", "problem")


def test_a_chart_without_any_finite_value_says_so(write_run: WriteRun) -> None:
    run = write_run()
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n', encoding="utf-8")
    assert "None of the values" in chart(parsed(write_report(run)), "Loss").text


def test_hostile_text_stays_text(write_run: WriteRun) -> None:
    run = write_run(finished=False)
    for name in ("summary.json", "environment.json"):
        content = json.loads((run / name).read_text(encoding="utf-8"))
        hostile = {key: EVIL if isinstance(value, str) else value for key, value in content.items()}
        (run / name).write_text(json.dumps(hostile | {EVIL: {EVIL: [EVIL]}}), encoding="utf-8")
    answers = [
        {"prompt": [{"role": EVIL, "content": EVIL}], "before": EVIL, "after": EVIL, "chosen": EVIL},
        {"prompt": [7, {"content": [{"type": "text"}]}, None], "before": 3, "after": None},
        {"prompt": EVIL, "chosen": {"a": EVIL}},
        {},
    ]
    (run / "answers.json").write_text(json.dumps(answers), encoding="utf-8")
    with (run / "config.yaml").open("a", encoding="utf-8") as file:
        file.write('"</table><script>":\n  "<b>": "</td><script>alert(1)</script>"\n  list: ["<i>", {a: b}]\n')
    (run / "error.log").write_text(EVIL.replace("\ud800", ""), encoding="utf-8")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 1, "<script>": 2}\n<script>', encoding="utf-8")
    page = parsed(write_report(run))
    assert not page.all("script") + page.all("img") + page.all("b") + page.all("i")
    harmless = EVIL
    for control in ("\x1b", "\x00", "\x9b", "\ud800"):
        harmless = harmless.replace(control, "\N{REPLACEMENT CHARACTER}")
    prose = [node.text for node in page.all("div", "prose")]
    assert prose[:4] == [harmless] * 4
    assert page.all("h4")[0].text == harmless
    assert page.all("section")[0].all("pre")[0].text == harmless.removesuffix("\N{REPLACEMENT CHARACTER}")


def test_a_hostile_directory_name_stays_text(write_run: WriteRun) -> None:
    run = write_run()
    evil = run.rename(run.with_name("<script>alert(1)<"))
    page = parsed(write_report(evil))
    assert page.all("h1")[0].text == "<script>alert(1)<"
    assert not page.all("script")


@pytest.mark.slow
def test_very_long_text_is_cut(write_run: WriteRun) -> None:
    run = write_run()
    (run / "answers.json").write_text(json.dumps([{"prompt": "p", "before": "x" * 10**6, "after": "y"}] * 99))
    report = write_report(run)
    assert report.stat().st_size < 1_500_000
    assert "(1,000,000 characters)" in parsed(report).all("div", "prose")[1].text


@pytest.mark.parametrize("missing", ["environment.json", "metrics.jsonl", "summary.json", "answers.json"])
def test_a_page_is_written_whatever_file_is_missing(write_run: WriteRun, missing: str) -> None:
    run = write_run()
    (run / missing).unlink()
    assert parsed(write_report(run)).all("h1")[0].text == "run"


def test_a_run_that_just_began_has_a_page(write_run: WriteRun) -> None:
    run = write_run(finished=False, answers=False)
    for name in ("environment.json", "metrics.jsonl", "summary.json"):
        (run / name).unlink()
    page = parsed(write_report(run))
    assert "not finished" in page.all("span", "badge")[0].text
    assert "No metrics have been written yet." in page.text
    assert not page.all("figure")
    assert f"wishbone train {shlex.quote(f'{run}/config.yaml')} --resume" in page.text


@pytest.mark.slow
@pytest.mark.parametrize("steps", [20_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_many_steps_make_a_small_page(write_run: WriteRun, steps: int) -> None:
    report = write_report(write_run(steps=steps, every=steps // 200))
    assert report.stat().st_size < 250_000
    assert len(chart(parsed(report), "Loss").all("circle")) <= 101


def test_settings_that_differ_from_their_default_show_it(write_run: WriteRun) -> None:
    tables = parsed(write_report(write_run())).all("table", "settings")
    shown = {
        (table.all("caption")[0].text, row.all("th")[0].text): row.all("td")[0]
        for table in tables
        if table.all("caption")
        for row in table.all("tr")
    }
    rate, beta = shown["training", "learning_rate"], shown["preference", "beta"]
    assert (rate.texts[0], [note.text for note in rate.all("span")]) == ("1e-05", ["default 5e-06"])
    assert (beta.text, beta.all("span")) == ("0.1", [])


def test_tokens_that_only_together_are_a_character_are_all_shown() -> None:
    pair = {"prompt": ["a", "\N{CHECK MARK}"], "chosen": ["b"] * 400, "rejected": ["c"], "lengths": [4, 900, 1]}
    shown = views.pairs(RunRecord(path=Path("run"), pairs=[pair]))
    assert shown and re.findall(r"<h4>(.*?)</h4>", shown) == [
        "prompt, 4 tokens", "chosen, 900 tokens, the first 400 shown", "rejected, 1 token"
    ]  # fmt: skip


def test_writing_again_gives_the_same_page_and_leaves_nothing_behind(write_run: WriteRun) -> None:
    run = write_run()
    before = {path.name for path in run.iterdir()}
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    assert {path.name for path in run.iterdir()} == before | {"report.html"}


def test_a_directory_that_cannot_be_written_to_is_refused(write_run: WriteRun) -> None:
    run = write_run()
    (run / "report.html").mkdir()
    with pytest.raises(RequestError, match="cannot be written"):
        write_report(run)


@pytest.mark.slow
def test_the_report_needs_no_torch() -> None:
    code = "import sys, wishbone.report.html, wishbone.cli; sys.exit(bool({'torch', 'datasets'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
