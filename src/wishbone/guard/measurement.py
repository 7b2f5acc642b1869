"""One measurement of a run: on one process, in evaluation mode, timed.

The others wait for its values, so that all processes decide alike. No random number is drawn and no gradient computed:
training continues as if nothing had been measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from wishbone.engine.execution import Execution
from wishbone.engine.step import PreferenceStep
from wishbone.guard.answers import NEW_TOKENS, Questions, answer_values, generate
from wishbone.guard.sample import Sample

FEWEST_TOKENS = 12
"""Where the time would only allow shorter answers than this, none are generated."""


@dataclass(frozen=True)
class Measurement:
    """Values by name, and the seconds that they took.

    Attributes:
        tokens: longest answers that were generated; 0: no time or no prompt for any; None: none were asked for.
        said: prompts and answers as texts.
    """

    values: dict[str, float]
    tokens: int | None = None
    said: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Measuring:
    """What is measured.

    Attributes:
        step: scores pairs.
        execution: returns how rows are computed now.
        sample: the pairs that are scored.
        questions: the prompts that are answered.
        here: whether this process measures.
        share: returns the value of the process that measures, on every process.
        decode: writes token ids as text; None: answers are measured and not kept.
    """

    step: PreferenceStep
    execution: Callable[[], Execution]
    sample: Sample
    questions: Questions
    here: bool
    share: Callable[[Any], Any]
    decode: Callable[[list[int]], str] | None = None

    def pairs(self, *, evaluated: bool) -> Measurement:
        """Score the sample; `evaluated`: take what an evaluation has just scored, if that was all of it."""

        def score() -> Measurement:
            values = self.sample.observed(self.step) if evaluated else None
            return Measurement(values or self.sample.measure(self.step, self.execution()))

        return self._timed(score)

    def answers(self, tokens: int | None, limit: float | None) -> Measurement:
        """Generate answers and measure them.

        Args:
            tokens: longest answers as in earlier measurements; None: the first one, which finds out.
            limit: seconds that the first one may take, or None: as many as it needs.
        """

        def generated() -> Measurement:
            if not self.questions.prompts:
                return Measurement({}, 0)
            model, began = self.step.policy.causal_lm, time.perf_counter()
            answers = generate(model, self.questions, tokens or NEW_TOKENS, limit if tokens is None else None)
            length = tokens or NEW_TOKENS
            if tokens is None and limit is not None and time.perf_counter() - began > limit:
                length = max(map(len, answers))
                if length < FEWEST_TOKENS:
                    return Measurement({}, 0)
            values = answer_values(answers, self.questions, self.step, self.execution())
            said = zip(self.questions.prompts, answers, strict=True) if self.decode else ()
            return Measurement(values, length, tuple((self._text(prompt), self._text(ids)) for prompt, ids in said))

        return self._timed(generated)

    def _text(self, ids: list[int]) -> str:
        return "" if self.decode is None else self.decode(ids)

    def _timed(self, measure: Callable[[], Measurement]) -> Measurement:
        if not self.here:
            return cast(Measurement, self.share(None))
        if self.step.policy.device.type != "cpu":
            torch.accelerator.synchronize()  # what training still computes is not the guard's time
        began = time.perf_counter()
        with _evaluating(self.step.policy.model):
            measured = measure()
        own = replace(measured, seconds=time.perf_counter() - began)
        return cast(Measurement, self.share(own))


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode for as long as the context lasts."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
