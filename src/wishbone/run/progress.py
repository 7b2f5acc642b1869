"""The progress bar of a run: step, loss, reward margin and accuracy, time left."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ProgressBar(TrainerCallback):  # type: ignore[misc]
    """One line that is redrawn on a terminal; elsewhere a plain line after every tenth of the run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: dict[str, str] = {}
        self._progress: Progress | None = None
        self._last_tenth = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the bar at the run's first step, which is not 0 after a resume."""
        if not state.is_world_process_zero or not self._console.is_terminal:
            return
        columns = (
            TextColumn("training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=self._console, transient=True)
        self._task = self._progress.add_task("training", total=state.max_steps, completed=state.global_step, metrics="")
        self._progress.start()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Note the newest training metrics."""
        names = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy"}
        if logs and "loss" in logs:
            self._shown = {label: f"{float(logs[name]):.3f}" for name, label in names.items() if name in logs}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar."""
        metrics = "  ".join(f"{label} {value}" for label, value in self._shown.items())
        if self._progress is not None:
            self._progress.update(self._task, completed=state.global_step, metrics=metrics)
        elif state.is_world_process_zero and not self._console.is_terminal:
            tenth = 10 * state.global_step // max(state.max_steps, 1)
            if tenth > self._last_tenth:
                self._last_tenth = tenth
                self._console.print(f"step {state.global_step}/{state.max_steps}  {metrics}", highlight=False)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()
