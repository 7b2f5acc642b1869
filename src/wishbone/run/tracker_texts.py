"""Texts of a run in its trackers: pairs as the model sees them, the guard's events, answers as they change.

transformers logs metrics to every tracker; texts it logs to none. They go to the three that have a place for them:
TensorBoard's text panel, and the tables of trackio and Weights & Biases. Others get the metrics alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from wishbone.report.answers import Answer
from wishbone.report.sections import message_text
from wishbone.run.trackers import Row, Tracker

LONGEST = 4_000
"""Letters of a text."""


class TrackerTexts(TrainerCallback):  # type: ignore[misc]
    """Hands new texts to the trackers of a run whenever it logs.

    Args:
        trackers: of the run.
        events: returns the rows of the guard so far.
        pairs: first pairs of the run, as `shown_pairs` writes them.
    """

    def __init__(
        self,
        trackers: Sequence[Tracker],
        events: Callable[[], Sequence[Mapping[str, Any]]],
        pairs: Sequence[Mapping[str, Any]],
    ) -> None:
        self._trackers, self._events, self._pairs, self._told = trackers, events, pairs, 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Pass over what an earlier part of the run has handed over."""
        if state.global_step:
            self._told, self._pairs = len(self._events()), ()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Hand over what is new."""
        if not state.is_world_process_zero or not self._trackers:
            return
        if self._pairs:
            rows = [{name: "".join(pair[name]) for name in ("prompt", "chosen", "rejected")} for pair in self._pairs]
            self._tell("pairs", rows, state.global_step)
            self._pairs = ()
        new = list(self._events())[self._told :]
        self._told += len(new)
        for row in new:
            self._tell_event(row)

    def _tell_event(self, row: Mapping[str, Any]) -> None:
        step = int(row["step"])
        if row["kind"] == "answers":
            both = zip(row["prompts"], row["answers"], strict=True)
            self._tell("answers", [{"prompt": prompt, "answer": answer} for prompt, answer in both], step)
        elif row["kind"] == "alarm":
            said = {name: str(row[name]) for name in ("title", "seen", "advice", "action")}
            self._tell("guard", [{"event": row["severity"], **said}], step)
        elif row["kind"] == "note":
            self._tell("guard", [{"event": "note", "title": str(row["text"])}], step)

    def tell_answers(self, answers: Sequence[Answer], step: int) -> None:
        """Hand over answers before and after the run."""
        rows = [{"prompt": _as_text(one.prompt), "before": one.before, "after": one.after} for one in answers]
        if rows:
            self._tell("answers before and after", rows, step)

    def _tell(self, title: str, rows: Sequence[Row], step: int) -> None:
        short = [{key: text[:LONGEST] for key, text in row.items()} for row in rows]
        for tracker in self._trackers:
            tracker.tell(title, short, step)


def _as_text(prompt: str | Sequence[Any]) -> str:
    """A prompt as text; messages behind their roles where there are several."""
    if isinstance(prompt, str):
        return prompt
    turns = [message_text(message) for message in prompt]
    return turns[0][1] if len(turns) == 1 else "\n".join(f"{role}: {text}" for role, text in turns)
