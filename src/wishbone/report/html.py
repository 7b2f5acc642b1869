"""`report.html`: a run on one page that needs no network, no script and no other file.

The page works in a browser, on paper and with a screen reader, in a light and a dark scheme. A content security policy
forbids it to load or run anything, so even an error in escaping could do no harm.
"""

from __future__ import annotations

from pathlib import Path

from wishbone.atomic_file import write_text
from wishbone.errors import RequestError
from wishbone.paths import unwritten
from wishbone.report import sections, views
from wishbone.report.fused_table import fused_table
from wishbone.report.markup import Markup, element, join
from wishbone.report.run_directory import RunRecord, read_run
from wishbone.version import __version__

REPORT = "report.html"
STYLE = Path(__file__).with_name("page.css")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def write_report(run_dir: Path) -> Path:
    """Write the report of a run into its directory, as a whole or not at all, and return its path.

    Args:
        run_dir: a run directory: finished, still running, or stopped.

    Raises:
        RequestError: `run_dir` is not a run directory, or cannot be written to.
    """
    text = page(read_run(run_dir))
    report = run_dir / REPORT
    try:
        write_text(report, text)
    except OSError as error:
        raise RequestError(unwritten(report, error, "copy the run to another place")) from error
    return report


def page(record: RunRecord) -> str:
    """Return the page of a run."""
    main = element(
        "main",
        sections.heading(record),
        sections.error_log(record),
        sections.findings(record),
        sections.answers(record),
        sections.result(record),
        sections.charts(record),
        views.guard(record),
        views.answers_over_time(record),
        views.pairs(record),
        views.memory(record),
        fused_table(record),
        sections.settings(record),
        sections.environment(record),
        views.next_steps(record),
        element("footer", f"Written by Wishbone {__version__}."),
    )
    return document(record.path.resolve().name, STYLE.read_text(encoding="utf-8"), POLICY, element("body", main))


def document(title: str, style: str, policy: str, body: Markup) -> Markup:
    """Return a page of its own: `style` is CSS, `policy` its content security policy."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name_="color-scheme", content="light dark"),
        element("title", f"{title} - Wishbone"),
        element("style", Markup(style)),
    )
    return join(Markup("<!doctype html>\n"), element("html", head, body, lang="en"), "\n")
