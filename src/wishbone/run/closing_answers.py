"""A few answers of a run, before and after training, from the model that is in memory.

After training an adapter is switched off for "before". A run that trains every weight has no such switch, and is asked
before it trains.
"""

from __future__ import annotations

import logging
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wishbone.errors import one_line
from wishbone.guard.answers import Questions, generate
from wishbone.phases import phase
from wishbone.report.answers import Answer, Question, questions_from_pairs
from wishbone.trainer.trainer import DPOTrainer

logger = logging.getLogger(__name__)

NEW_TOKENS = 48
LONGEST_PROMPT = 512
SEARCHED = 8
"""Pairs looked at for each question, because long prompts are passed over."""


class ClosingAnswers:
    """Greedy answers of at most `NEW_TOKENS` tokens to the first short prompts of some pairs, before and after a run.

    Make it before training begins: without an adapter that could be switched off, the answers before are generated
    then, from weights that training changes. A run that is resumed has its first weights until it begins to train.

    Args:
        trainer: whose training has not begun.
        pairs: tokenized, preferably held out.
        tokenizer: of the model.
        count: how many prompts; 0: none.
    """

    def __init__(self, trainer: DPOTrainer, pairs: Dataset, tokenizer: PreTrainedTokenizerBase, count: int) -> None:
        self._trainer, self._tokenizer = trainer, tokenizer
        self._asked = _questions(pairs, tokenizer, count) if trainer.preference_step is not None else []
        self._before: list[list[int]] | None = None
        if count and trainer.preference_step is None:
            logger.info("TRL's own code trains, so no answers are generated; `wishbone compare` gives them.")
        if self._asked and not isinstance(self._model, PeftModel):
            self._before = self._generated("before")

    def finish(self) -> list[Answer]:
        """Return the answers of a run that has ended: none on TRL's own path, or where all prompts are long."""
        if not self._asked:
            return []
        before = self._before
        if isinstance(self._model, PeftModel):
            with self._model.disable_adapter():
                before = self._generated("before")
        after = None if before is None else self._generated("after")
        if before is None or after is None:
            return []
        return [
            _answer(question, first, second, self._ends, self._tokenizer)
            for question, first, second in zip(self._asked, before, after, strict=True)
        ]

    @property
    def _model(self) -> Any:
        return self._trainer.accelerator.unwrap_model(self._trainer.model)

    @property
    def _ends(self) -> list[int]:
        """Tokens that end an answer."""
        own = getattr(self._causal_lm.generation_config, "eos_token_id", None)
        ends = [*(own if isinstance(own, list) else [own]), self._tokenizer.eos_token_id]
        return list(dict.fromkeys(token for token in ends if token is not None))

    @property
    def _causal_lm(self) -> PreTrainedModel:
        assert self._trainer.preference_step is not None
        return self._trainer.preference_step.policy.causal_lm

    def _generated(self, when: str) -> list[list[int]] | None:
        """Answers of the model as it is now; None, with a line, where it cannot generate."""
        pad = self._tokenizer.pad_token_id
        questions = Questions(
            prompts=[question.ids for question in self._asked], ends=self._ends, pad=0 if pad is None else pad
        )
        model = self._model
        training = model.training
        model.eval()
        try:
            with phase("answers", note=f"{len(self._asked)} {when}"):
                return generate(self._causal_lm, questions, NEW_TOKENS, None)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:  # the run needs none
            logger.warning("No answers were generated (%s); `wishbone compare` tries again.", one_line(error))
            return None
        finally:
            model.train(training)


def _questions(pairs: Dataset, tokenizer: PreTrainedTokenizerBase, count: int) -> list[Question]:
    """The first short prompts of some pairs."""
    if not count:
        return []
    found = questions_from_pairs(pairs.select(range(min(len(pairs), SEARCHED * count))), tokenizer, SEARCHED * count)
    return [question for question in found if 0 < len(question.ids) <= LONGEST_PROMPT][:count]


def _answer(
    question: Question, before: list[int], after: list[int], ends: list[int], tokenizer: PreTrainedTokenizerBase
) -> Answer:
    def text(ids: list[int]) -> str:
        said = str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
        return said if ids[-1] in ends else f"{said} \N{HORIZONTAL ELLIPSIS}"

    return Answer(question.prompt, text(before), text(after), question.chosen)
