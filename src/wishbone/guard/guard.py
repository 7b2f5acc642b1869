"""The callback: it measures when the schedules say so, judges, and does what was asked for.

With `report` it changes nothing: the weights are bitwise those of a run without a guard. What its decisions depend on
is saved with each checkpoint, in the state of transformers' trainer: a resumed run decides as the whole run would have.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from wishbone.errors import counted
from wishbone.guard.advice import advice_for
from wishbone.guard.best_weights import BestWeights
from wishbone.guard.judge import Alarm, Judge, Judgement
from wishbone.guard.learning_rates import FACTOR, lower
from wishbone.guard.measurement import Measuring
from wishbone.guard.record import Record
from wishbone.guard.schedule import AIM, SHARE, Schedule
from wishbone.guard.training_figures import TrainingFigures
from wishbone.reference.reference import NoReference
from wishbone.strict_json import read_spelled, spelled

Action = Literal["report", "slow", "stop"]
KEY = "wishbone_guard"
PACED = 3
"""After this many steps the time of one is known, and schedules are made."""
ENOUGH = 3
"""Measurements before which nothing can be said: the first one, and a sign twice."""
SHOWN_AS_NOTHING = ("late", "chosen_tokens")
"""Values that only signs read."""

logger = logging.getLogger(__name__)


@dataclass
class Course:
    """How the run went so far.

    Attributes:
        rate_factor: what learning rates were multiplied by.
        tokens: longest answers; None before the first, 0 where they are not watched.
        best_step, best_loss: of the best measurement without any sign.
        stopped: optimizer steps at which the guard stopped the run.
        restored: optimizer steps of the weights that were restored then.
        reference: see `Sample.reference`.
    """

    rate_factor: float = 1.0
    tokens: int | None = None
    best_step: int = 0
    best_loss: float | None = None
    stopped: int | None = None
    restored: int | None = None
    reference: list[float] | None = None


class Guard(TrainerCallback):  # type: ignore[misc]
    """Watches a run.

    Args:
        action: report alarms, also lower the learning rate, or also stop and restore the best weights.
        interval: steps between two measurements, or None: as `SHARE` of the run's time allows.
        measuring: measures the run.
        weights: keeps those of the best measurement.
        record: where rows go.
        settings: those of the run by dotted name, which the advice is compared with.
        beta: scale of the rewards.

    Attributes:
        record: where rows go.
    """

    def __init__(
        self,
        action: Action,
        interval: int | None,
        measuring: Measuring,
        weights: BestWeights,
        record: Record,
        settings: Mapping[str, Any],
        beta: float,
    ) -> None:
        self._action, self._measuring, self._weights, self._settings = action, measuring, weights, settings
        self.record = record
        self._fixed = interval is not None
        self._pairs, self._answers = Schedule(interval), Schedule(interval)
        self._judge, self._figures, self._course = Judge(), TrainingFigures(beta), Course()
        self._began = self._paced_from = self._spent_then = self._spent_before = self._seconds = 0.0
        self._first_step: int | None = None
        self._measured_at = -1
        self._awaits_evaluation = False

    def observe(self, *scored: Any) -> None:
        """Take what an evaluation scored: pairs, scores, reference log-probabilities."""
        self._measuring.sample.observe(*scored)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measure the model as it is before the first step, or go on where the checkpoint was."""
        self._began, self._first_step = time.perf_counter(), None
        self.record.begin(state.global_step)
        if state.global_step > 0 and KEY in state.stateful_callbacks:
            self._restore(state.stateful_callbacks[KEY], state.max_steps)
            control.should_training_stop |= self._course.stopped is not None
            return
        if not self._measuring.sample.heldout:
            self._note(
                state.global_step, "There are no held-out pairs, so the guard watches pairs of the training data."
            )
        self._measure(state, control, answers=self._fixed, evaluated=True)
        self._save(state)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Look for early signs in the figures of training."""
        if not logs or "loss" not in logs:
            return
        self._figures.add(logs)
        compared = not isinstance(self._measuring.step.reference, NoReference)
        tokens = self._judge.first.get("chosen_tokens", math.inf) if compared else math.inf
        if self._figures.suspicious(tokens):
            self._suspect(state.global_step + 1)
        self._save(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kept: Any) -> None:
        """Measure what is due; after the evaluation where one comes at this step."""
        step = state.global_step
        if self._first_step is None:
            self._first_step, self._paced_from, self._spent_then = step, time.perf_counter(), self._spent
        self._awaits_evaluation = control.should_evaluate
        if not self._awaits_evaluation:
            first_answers = not self._fixed and self._course.tokens is None and step - self._first_step >= PACED - 1
            answers = first_answers or (self._answers.due(step) and self._course.tokens != 0)
            if answers or self._pairs.due(step):
                self._measure(state, control, answers=answers, **kept)
        self._save(state)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kept: Any) -> None:
        """Judge what the evaluation scored anyway."""
        step = state.global_step
        if self._first_step is None or step == self._measured_at or self._course.stopped is not None:
            return
        answers = self._answers.due(step) and self._course.tokens != 0
        self._measure(state, control, answers=answers, evaluated=True, **kept)
        self._save(state)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep the plan from the first checkpoint on, so that a run continued from it measures as this one will."""
        self._pairs.keep_plan()
        self._answers.keep_plan()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Restore the best weights of a run that was stopped, and say how much was seen."""
        self._seconds = time.perf_counter() - self._began
        course, step, self._first_step = self._course, state.global_step, None
        if course.stopped is not None:
            course.restored = self._weights.restore(course.best_step)
            if course.restored is None:
                self._note(step, "There is no checkpoint from before the trouble, so the weights stay the last ones.")
            else:
                which = f"after step {course.restored}" if course.restored else "before the first step"
                self._note(step, f"The weights are again those {which}, where nothing unusual had been seen.")
        if course.stopped is None and step < state.max_steps:
            return  # a signal or another callback ended it, and it may go on
        if self._measuring.here and course.stopped is None:  # otherwise they are the result, still to be written
            self._weights.discard()
        if self.measurements < ENOUGH:
            self._note(
                step,
                f"Too few steps to judge: {counted(self.measurements, 'measurement')} in {counted(step, 'step')}, and "
                f"{ENOUGH} are needed. A longer run has time for more; guard_steps measures at fixed steps, "
                "whatever that costs.",
            )

    def discard(self) -> None:
        """Remove the best weights from the disk, once the result of a run that was stopped is written."""
        if self._measuring.here:
            self._weights.discard()

    @property
    def measurements(self) -> int:
        """How often pairs were scored in this run."""
        return len(self.record.of_kind("measurement"))

    @property
    def restored(self) -> bool:
        """Whether the weights are not those of the last step."""
        return self._course.restored is not None

    def summary(self) -> dict[str, Any]:
        """Return the result of the run for summary.json."""
        course = self._course
        return {
            "action": self._action,
            "measurements": self.measurements,
            "enough": self.measurements >= ENOUGH,
            "seconds": round(self._spent, 3),
            "share": round((self._spent - self._spent_before) / self._seconds, 4) if self._seconds else None,
            "alarms": self.record.of_kind("alarm"),
            "notes": [row["text"] for row in self.record.of_kind("note")],
            "rate_factor": course.rate_factor,
            "stopped_at_step": course.stopped,
            "restored_step": course.restored,
        }

    def _measure(
        self,
        state: TrainerState,
        control: TrainerControl,
        *,
        answers: bool,
        evaluated: bool = False,
        **kept: Any,
    ) -> None:
        """Measure, judge, act, and plan what is measured next."""
        step, course = state.global_step, self._course
        pace = self._measuring.share(self._pace(step))
        self._measured_at = step
        measured = self._measuring.pairs(evaluated=evaluated)
        self._pairs.spent += measured.seconds
        values, seconds = dict(measured.values), measured.seconds
        if pace is not None or self._fixed:
            self._pairs.plan(step, state.max_steps, cost=measured.seconds, step_seconds=pace or 0.0)
        if answers:
            limit = None if self._fixed or pace is None else AIM * state.max_steps * pace / 3
            given = self._measuring.answers(course.tokens, limit)
            self._answers.spent += given.seconds
            values, seconds, first = values | given.values, seconds + given.seconds, course.tokens is None
            if given.said:
                prompts, texts = zip(*given.said, strict=True)
                self.record.add("answers", step, prompts=list(prompts), answers=list(texts))
            course.tokens = given.tokens
            self._answers.plan(step, state.max_steps, cost=given.seconds, step_seconds=pace or 0.0)
            if first and not given.tokens:
                self._note(
                    step, f"Answers are not watched: within {SHARE:.0%} of this run's time there is none for them."
                )
        values |= self._figures.values() | {"late": float(2 * step >= state.max_steps)}
        judgement = self._judge.judge(step, values)
        shown = {name: value for name, value in values.items() if name not in SHOWN_AS_NOTHING}
        self.record.add("measurement", step, **shown, signs=judgement.seen, seconds=round(seconds, 3))
        self._follow(judgement, step, values["pair_loss"], control, **kept)

    def _follow(self, judgement: Judgement, step: int, loss: float, control: TrainerControl, **kept: Any) -> None:
        """Do what a judgement asks for."""
        course = self._course
        if judgement.unconfirmed:
            self._suspect(step + 1)
        if not judgement.seen and (course.best_loss is None or loss < course.best_loss):
            course.best_step, course.best_loss = step, loss
            if self._action == "stop":
                self._weights.keep(step, write=self._measuring.here)
        problems = [alarm for alarm in judgement.alarms if alarm.sign.severity == "problem"]
        acted = ""
        if problems and self._action == "slow":
            lower(kept["optimizer"], kept["lr_scheduler"])
            course.rate_factor *= FACTOR
            acted = f"The learning rate is now {course.rate_factor:g} of what the schedule says."
            for alarm in problems:
                self._judge.again(alarm.sign.name)
        elif problems and self._action == "stop":
            course.stopped, control.should_training_stop = step, True
            acted = f"The run stops with the weights of step {course.best_step}, where nothing unusual had been seen."
        for alarm in judgement.alarms:
            self._say(alarm, acted if alarm in problems else "")

    def _suspect(self, step: int) -> None:
        self._pairs.suspect(step)
        self._answers.suspect(step)

    def _say(self, alarm: Alarm, action: str) -> None:
        sign = alarm.sign
        advice = advice_for(sign.symptom, self._settings)
        pairs = "held-out" if self._measuring.sample.heldout else "training"
        text = f"{sign.title}. Since step {alarm.since} ({pairs} pairs): {alarm.text}."
        logger.warning("Guard, step %d: %s", alarm.step, " ".join(filter(None, (text, action, f"To change: {advice}"))))
        self.record.add(
            "alarm", alarm.step, since=alarm.since, sign=sign.name, severity=sign.severity, title=sign.title,
            seen=alarm.text, advice=advice, action=action,
        )  # fmt: skip

    def _note(self, step: int, text: str) -> None:
        logger.info("Guard, step %d: %s", step, text)
        self.record.add("note", step, text=text)

    @property
    def _spent(self) -> float:
        return self._pairs.spent + self._answers.spent

    def _pace(self, step: int) -> float | None:
        """Mean seconds of a step since the first one of this process ended; None if there was none."""
        if self._first_step is None or step <= self._first_step:
            return None
        guarded = self._spent - self._spent_then
        return max(time.perf_counter() - self._paced_from - guarded, 0.0) / (step - self._first_step)

    def _save(self, state: TrainerState) -> None:
        """Put what decisions depend on into the state that checkpoints hold."""
        self._course.reference = self._measuring.sample.reference
        state.stateful_callbacks[KEY] = spelled(
            {
                "pairs": self._pairs.state(),
                "answers": self._answers.state(),
                "judge": self._judge.state(),
                "figures": self._figures.state(),
                "course": asdict(self._course),
            }
        )

    def _restore(self, state: Mapping[str, Any], max_steps: int) -> None:
        saved = read_spelled(state)
        self._pairs.restore(saved["pairs"], max_steps)
        self._answers.restore(saved["answers"], max_steps)
        self._judge.restore(saved["judge"])
        self._figures.restore(saved["figures"])
        course = Course(**saved["course"])  # one that was stopped and killed before its end ends as it would have
        self._course = replace(course, stopped=course.stopped if self._action == "stop" else None, restored=None)
        self._spent_before = self._spent
        self._measuring.sample.reference = self._course.reference
        if self._action == "stop":
            self._weights.resume(self._course.best_step)
