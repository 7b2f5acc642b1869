"""What the guard of a run wrote: its alarms from `guard.jsonl`, and in a line what it did.

Like everything in a run directory the rows may hold anything; what is not as the guard writes it is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wishbone.report.run_directory import RunRecord

LONGEST_TEXT = 2_000
TEXTS = ("title", "seen", "advice", "action")


def alarms(record: RunRecord) -> list[dict[str, Any]]:
    """Return the alarms in the order of their steps, each with `step`, `since`, `severity` and texts."""
    found = []
    for row in record.guard:
        texts = {name: row.get(name) for name in TEXTS}
        steps = [row.get(name) for name in ("step", "since")]
        if row.get("kind") != "alarm" or not all(isinstance(step, int) for step in steps):
            continue
        if not all(isinstance(text, str) for text in texts.values()):
            continue
        severity = "problem" if row.get("severity") == "problem" else "warning"
        shown = {name: str(text)[:LONGEST_TEXT] for name, text in texts.items()}
        found.append({"step": steps[0], "since": steps[1], "severity": severity, **shown})
    return found


def guard_text(record: RunRecord) -> str | None:
    """Return what the guard did, in a line; None for a run without one."""
    summary = record.summary.get("guard")
    if not isinstance(summary, Mapping):
        return None
    measured, share = summary.get("measurements"), summary.get("share")
    parts = [f"{summary.get('action')}, {measured} measurements"[:LONGEST_TEXT]]
    if isinstance(share, float):
        parts.append(f"{share:.1%} of the time")
    stopped, restored, factor = (summary.get(name) for name in ("stopped_at_step", "restored_step", "rate_factor"))
    if isinstance(stopped, int):
        weights = f"with the weights of step {restored}" if isinstance(restored, int) else "with its last weights"
        parts.append(f"stopped at step {stopped} {weights}")
    if isinstance(factor, float) and factor != 1:
        parts.append(f"learning rate lowered to {factor:g} of the schedule")
    return ", ".join(parts)
