"""The sections of the page, the most important first."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from wishbone.config.schema import RunConfig
from wishbone.report.chart import draw
from wishbone.report.curves import curves
from wishbone.report.diagnosis import diagnose, verdict
from wishbone.report.guard import guard_text
from wishbone.report.markup import Markup, element
from wishbone.report.outcome import MEASURES, heldout_pairs, in_words, outcome
from wishbone.report.run_directory import RunRecord

LONGEST_VALUE, LONGEST_ANSWER, MOST_ANSWERS = 2_000, 20_000, 50
STATUS = {
    "done": "done",
    "failed": "failed",
    "not finished": "not finished: still running, or stopped",
    "starting": "starting: reads its pairs and its model",
}
FORMS = {
    "shared_prefix": "each prompt once, shared by both answers",
    "plain": "ordinary sequences, each prompt twice",
    "own_logits": "ordinary sequences, with the model's own logits",
    "trl": "TRL's own path",
}


def heading(record: RunRecord) -> Markup:
    """Name, status and the facts of a run."""
    status = record.status if record.status in STATUS else "not finished"
    badge = element("span", STATUS.get(record.status, record.status), class_=f"badge {status.replace(' ', '-')}")
    return element(
        "header",
        element("p", "Wishbone run report", class_="kind"),
        element("h1", record.path.resolve().name, dir="auto"),
        element("p", badge),
        _pairs_of(facts(record)),
    )


def facts(record: RunRecord) -> dict[str, str]:
    """Short facts about the run, by name; unknown ones are skipped."""
    summary, environment = record.summary, record.environment
    model = _known(summary.get("model"), record.config.get("model", {}).get("name"))
    adapter, preference = record.config.get("adapter", {}), record.config.get("preference", {})
    method = adapter.get("method")
    learned = f"adapter of rank {adapter.get('rank')}" if method == "lora" else "every weight" if method else None
    loss = preference.get("loss")
    names = " + ".join(map(str, loss)) if isinstance(loss, list) else loss
    logged = [points[-1][0] for points in record.metrics.values()]
    steps = _known(summary.get("steps"), int(max(logged)) if logged else None)
    form = summary.get("form")
    reason = summary.get("form_reason")
    shown = {
        "Reason": summary.get("reason") if record.status in ("failed", "stopped") else None,
        "Model": model,
        "Trained": learned,
        "Loss": None if names is None else f"{names}, beta {preference.get('beta')}",
        "Pairs": _pair_counts(record),
        "Steps": _counted(steps),
        "Training time": _duration(summary.get("train_seconds")),
        "Speed": _speed(summary),
        "Peak memory": _measured(summary.get("peak_memory_gib"), "GiB"),
        "Device": _known(environment.get("device_name"), summary.get("device"), environment.get("device")),
        "Guard": guard_text(record),
        "Computed as": None
        if form is None
        else FORMS.get(str(form), str(form)) + (f", because {reason}" if reason else ""),
        "Started": _moment(summary.get("started")),
        "Finished": _moment(summary.get("finished")),
    }
    return {name: _value(value) for name, value in shown.items() if value is not None and value != ""}


def findings(record: RunRecord) -> Markup | None:
    """The diagnosis, and what could not be read."""
    found = [
        element(
            "li",
            element("strong", f"{finding.severity.capitalize()}: {finding.title}. "),
            finding.evidence,
            element("span", finding.remedy, class_="remedy"),
            class_=finding.severity,
        )
        for finding in diagnose(record)
    ]
    found += [element("li", element("strong", "Note: "), problem, class_="note") for problem in record.problems]
    if found:
        return element("section", element("h2", "What stands out"), element("ul", *found, class_="findings"))
    text = verdict(record)
    return element("section", element("p", text, class_="fine")) if text else None


def result(record: RunRecord) -> Markup:
    """The table of metrics before and after."""
    measured = outcome(record)
    if not measured.changes:
        return _section("Result", element("p", "No metrics have been written yet.", class_="empty"))
    head = element("tr", *(element("th", name, scope="col") for name in ("Metric", *measured.times, "Change")))
    rows = [
        element(
            "tr",
            element("th", change.label, element("small", MEASURES[change.metric][1]), scope="row"),
            *(element("td", text) for text in change.shown()),
        )
        for change in measured.changes
    ]
    caption = element("caption", measured.caption)
    table = element("table", caption, element("thead", head), element("tbody", *rows), class_="numbers result")
    return _section("Result", element("div", table, class_="wide"))


def charts(record: RunRecord) -> Markup | None:
    """The curves of training."""
    drawn = [draw(chart) for chart in curves(record)]
    return _section("Curves", element("div", *drawn, class_="charts")) if drawn else None


def answers(record: RunRecord) -> Markup:
    """Answers to the same prompts before and after."""
    if not record.answers and record.status != "done":
        return _section("Answers", element("p", "Those before and after come at the end of the run.", class_="empty"))
    if not record.answers:
        hint = element("code", f"wishbone compare {record.path}")
        return _section("Answers", element("p", "None yet. To generate some: ", hint, class_="empty"))
    note = element("p", "Greedy answers of the model before and after training.")
    return _section("Answers", note, *map(_answer, record.answers[:MOST_ANSWERS]))


def settings(record: RunRecord) -> Markup | None:
    """Every setting, with the default if it differs."""
    tables = []
    for name, section in record.config.items():
        rows = []
        for key, value in section.items():
            default = _default(name, key)
            changed = default is not _NO_DEFAULT and default != value
            shown = element("span", f"default {_value(default)}", class_="default") if changed else None
            cell = element("td", _value(value), shown, class_="changed" if changed else None)
            rows.append(element("tr", element("th", key, scope="row"), cell))
        tables.append(element("table", element("caption", name), element("tbody", *rows), class_="settings"))
    return _section("Settings", element("div", *tables, class_="tables")) if tables else None


def environment(record: RunRecord) -> Markup | None:
    """Versions, machine and command of the run."""
    flat: dict[str, Any] = {}
    for name, value in record.environment.items():
        if name == "command" and isinstance(value, list):
            value = shlex.join(map(str, value))
        flat |= {str(key): entry for key, entry in value.items()} if isinstance(value, dict) else {str(name): value}
    if not flat:
        return None
    rows = [
        element("tr", element("th", name, scope="row"), element("td", _value(value))) for name, value in flat.items()
    ]
    table = element("table", element("tbody", *rows), class_="settings")
    return _section("Environment", element("div", table, class_="tables"))


def error_log(record: RunRecord) -> Markup | None:
    """The end of the traceback of a run that failed."""
    if not record.error_log or record.status == "done":
        return None
    return _section("Error", element("pre", record.error_log.strip(), tabindex=0))


def message_text(message: Any) -> tuple[str, str]:
    """Role and text of a chat message; content that is not text is shown as JSON."""
    if not isinstance(message, dict):
        return "prompt", _value(message)
    rest = {key: value for key, value in message.items() if key != "role"}
    content = rest.get("content")
    text = content if isinstance(content, str) and len(rest) == 1 else _value(rest)
    return str(message.get("role", "prompt")), text


def _answer(entry: dict[str, Any]) -> Markup:
    prompt = entry.get("prompt")
    turns = [
        element("div", element("h4", role), _prose(text), class_="turn")
        for role, text in map(message_text, prompt if isinstance(prompt, list) else [prompt])
    ]
    sides = [
        element("div", element("h4", name.capitalize()), _prose(entry.get(name)), class_=name)
        for name in ("before", "after")
    ]
    chosen = entry.get("chosen")
    wanted = element("details", element("summary", "Chosen answer in the data"), _prose(chosen)) if chosen else None
    return element("article", *turns, element("div", *sides, class_="sides"), wanted)


def _prose(text: Any) -> Markup:
    shown = text if isinstance(text, str) else _value(text)
    if not shown.strip():
        return element("p", "(empty)", class_="empty")
    return element("div", _cut(shown, LONGEST_ANSWER), class_="prose", dir="auto")


def _pairs_of(values: Mapping[str, str]) -> Markup:
    rows = [element("div", element("dt", name), element("dd", text, dir="auto")) for name, text in values.items()]
    return element("dl", *rows)


def _pair_counts(record: RunRecord) -> str | None:
    pairs, dropped = record.summary.get("pairs"), record.summary.get("dropped_rows")
    trained, heldout = (pairs.get("train") if isinstance(pairs, dict) else None), heldout_pairs(record)
    parts = [
        f"{_counted(count)} {what}"
        for count, what in (
            (trained, "to train on"),
            (heldout, "held out"),
            (dropped, "unusable rows dropped"),
            (record.summary.get("images"), "images"),
        )
        if count
    ]
    return ", ".join(parts) or None


def _counted(value: Any) -> str | None:
    return f"{value:,}" if isinstance(value, int) else None if value is None else _value(value)


def _measured(value: Any, unit: str) -> str | None:
    return f"{in_words(value)} {unit}" if isinstance(value, int | float) else None


def _speed(summary: Mapping[str, Any]) -> str | None:
    pairs, tokens = _measured(summary.get("pairs_per_second"), "pairs/s"), summary.get("tokens_per_second")
    parts = [part for part in (pairs, _measured(tokens, "tokens/s")) if part]
    return ", ".join(parts) or None


def _duration(seconds: Any) -> str | None:
    if not isinstance(seconds, int | float) or not 0 <= seconds < 1e9:
        return None
    if seconds < 60:
        return f"{seconds:.1f} s"
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _moment(written: Any) -> Any:
    """A time without seconds, in its own time zone; a value that is not a time is returned unchanged."""
    try:
        moment = datetime.fromisoformat(written)
    except (TypeError, ValueError):
        return written
    return f"{moment:%Y-%m-%d %H:%M} {moment.tzname() or ''}".strip()


def _known(*values: Any) -> Any:
    return next((value for value in values if value is not None and value != ""), None)


_NO_DEFAULT = object()


def _default(section: str, key: str) -> Any:
    """The default of a setting, or `_NO_DEFAULT` if the setting is required or unknown."""
    field = RunConfig.model_fields.get(section)
    known = getattr(field.annotation, "model_fields", {}) if field else {}
    return _NO_DEFAULT if key not in known or known[key].is_required() else known[key].default


def _value(value: Any) -> str:
    """A value as text of limited length; None and an empty list become a dash."""
    if value is None or value == []:
        return "\N{EN DASH}"
    if isinstance(value, str):
        return _cut(value, LONGEST_VALUE)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list) and all(isinstance(entry, str | int | float) for entry in value):
        return _cut(", ".join(map(str, value)), LONGEST_VALUE)
    return _cut(json.dumps(value, ensure_ascii=False, default=str), LONGEST_VALUE)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]} \N{HORIZONTAL ELLIPSIS} ({len(text):,} characters)"


def _section(title: str, *content: str) -> Markup:
    return element("section", element("h2", title), *content)
