"""Texts of a run in its trackers: pairs as the model sees them, the guard's events, answers as they change.

transformers logs metrics to every tracker; texts it logs to none. They go to the three that have a place for them:
TensorBoard's text panel, and the tables of trackio and Weights & Biases. Others get the metrics alone.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

from wishbone.errors import one_line

FOLDER = "tensorboard"
"""Where TensorBoard's files lie in a run directory."""
LONGEST = 4_000

logger = logging.getLogger(__name__)

Row = Mapping[str, str]
Sink = Callable[[str, Sequence[Row], int], None]


def tensorboard_callback(run_dir: Path) -> TensorBoardCallback:
    """Return transformers' callback, which writes into the run directory."""
    callback = TensorBoardCallback()
    callback.logging_dir = str(run_dir / FOLDER)
    return callback


class TrackerTexts(TrainerCallback):  # type: ignore[misc]
    """Hands new texts to the trackers of a run whenever it logs.

    Args:
        trackers: names of the trackers that the run logs to.
        board: transformers' callback for TensorBoard, or None.
        events: returns the rows of the guard so far.
        pairs: first pairs of the run, as `shown_pairs` writes them.
    """

    def __init__(
        self,
        trackers: Sequence[str],
        board: TensorBoardCallback | None,
        events: Callable[[], Sequence[Mapping[str, Any]]],
        pairs: Sequence[Mapping[str, Any]],
    ) -> None:
        self._events, self._pairs, self._told = events, pairs, 0
        self._sinks: list[Sink] = [_table_of(name) for name in ("trackio", "wandb") if name in trackers]
        if board is not None:
            self._sinks.append(_text_of(board))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Hand over what is new."""
        if not state.is_world_process_zero or not self._sinks:
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

    def tell_answers(self, answers: Sequence[Mapping[str, Any]], step: int) -> None:
        """Hand over answers before and after the run."""
        rows = [{name: str(answer[name]) for name in ("prompt", "before", "after")} for answer in answers]
        if rows:
            self._tell("answers before and after", rows, step)

    def _tell(self, name: str, rows: Sequence[Row], step: int) -> None:
        for sink in list(self._sinks):
            try:
                sink(name, [{key: text[:LONGEST] for key, text in row.items()} for row in rows], step)
            except (OSError, ValueError, TypeError, RuntimeError, AttributeError, ImportError) as error:
                self._sinks.remove(sink)  # metrics go on
                logger.warning("A tracker takes no texts (%s); it still gets the metrics.", one_line(error))


def _text_of(board: TensorBoardCallback) -> Sink:
    """Texts for TensorBoard, whose panel reads Markdown: blocks of code, in which nothing is markup."""

    def write(name: str, rows: Sequence[Row], step: int) -> None:
        writer = board.tb_writer or _writer(str(board.logging_dir))
        blocks = [f"{key}\n\n{_as_code(text)}" for row in rows for key, text in row.items()]
        writer.add_text(name, "\n\n".join(blocks), step)
        if writer is board.tb_writer:
            writer.flush()
        else:
            writer.close()

    return write


def _writer(folder: str) -> Any:
    """A writer beside transformers' own, which is closed when training ends."""
    try:
        module = importlib.import_module("torch.utils.tensorboard")
    except ImportError:
        module = importlib.import_module("tensorboardX")
    return module.SummaryWriter(log_dir=folder)


def _as_code(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])


def _table_of(tracker: str) -> Sink:
    """Texts as a table of a tracker with the interface of Weights & Biases, which trackio has, too."""

    def write(name: str, rows: Sequence[Row], step: int) -> None:
        module = importlib.import_module(tracker)
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table = module.Table(columns=columns, data=[[row.get(key, "") for key in columns] for row in rows])
        module.log({name: table}, **({"step": step} if tracker == "trackio" else {}))

    return write
