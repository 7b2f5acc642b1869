"""A few answers of a run that has just ended, before and after training, from the model that is still in memory.

The adapter is switched off for "before". A run that trained every weight has no such switch; `wishbone compare` loads
its first weights anew.
"""

from __future__ import annotations

import logging

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

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


def closing_answers(
    trainer: DPOTrainer, pairs: Dataset, tokenizer: PreTrainedTokenizerBase, count: int
) -> list[Answer]:
    """Return greedy answers of at most `NEW_TOKENS` tokens to the first short prompts of some pairs.

    Args:
        trainer: whose training has ended.
        pairs: tokenized, preferably held out.
        tokenizer: of the model.
        count: how many prompts; 0: none.

    Returns:
        Nothing on TRL's own path, without an adapter, or where all prompts are long.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not count or trainer.preference_step is None or not isinstance(model, PeftModel):
        return []
    found = questions_from_pairs(pairs.select(range(min(len(pairs), SEARCHED * count))), tokenizer, SEARCHED * count)
    asked = [question for question in found if 0 < len(question.ids) <= LONGEST_PROMPT][:count]
    if not asked:
        return []
    causal_lm = trainer.preference_step.policy.causal_lm
    own = getattr(causal_lm.generation_config, "eos_token_id", None)
    ends = [*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id]
    pad = tokenizer.pad_token_id
    questions = Questions(
        prompts=[question.ids for question in asked],
        ends=list(dict.fromkeys(token for token in ends if token is not None)),
        pad=0 if pad is None else pad,
    )
    training = model.training
    model.eval()
    try:
        with phase("answers", 2, note=f"{len(asked)} before and after") as counting, torch.no_grad():
            with model.disable_adapter():
                before = generate(causal_lm, questions, NEW_TOKENS, None)
            counting.more()
            after = generate(causal_lm, questions, NEW_TOKENS, None)
            counting.more()
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:  # the run is done, whatever generation lacks
        logger.warning("No answers were generated (%s); `wishbone compare` tries again.", one_line(error))
        return []
    finally:
        model.train(training)
    return [
        _answer(question, first, second, questions.ends, tokenizer)
        for question, first, second in zip(asked, before, after, strict=True)
    ]


def _answer(
    question: Question, before: list[int], after: list[int], ends: list[int], tokenizer: PreTrainedTokenizerBase
) -> Answer:
    def text(ids: list[int]) -> str:
        said = str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
        return said if ids[-1] in ends else f"{said} \N{HORIZONTAL ELLIPSIS}"

    return Answer(question.prompt, text(before), text(after), question.chosen)
