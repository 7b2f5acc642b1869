"""A few greedy answers of the policy as it is now: do they end, repeat themselves, how far are they from before?

    ended       share of answers that reach an end token within the limit
    length      mean tokens of an answer
    repetition  rep-4 = 1 - distinct 4-grams / 4-grams, over all answers (Li et al. 2023, arXiv:2310.10226)
    kl          mean over their tokens of log pi(y_t) - log pi_ref(y_t), nats a token

The last one estimates KL(pi || pi_ref) along the answers that the policy prefers. Greedy decoding draws no random
numbers, so training continues as if nobody had asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from transformers import GenerationConfig, PreTrainedModel

from wishbone.data.batch import TokenizedPair
from wishbone.engine.execution import Execution
from wishbone.engine.step import PreferenceStep
from wishbone.guard.sample import uncached
from wishbone.reference.reference import NoReference, Stored

PROMPTS = 4
LONGEST_PROMPT = 512
NEW_TOKENS = 32
NGRAM = 4


@dataclass(frozen=True)
class Questions:
    """Prompts to answer.

    Attributes:
        prompts: token ids of each prompt.
        ends: ids of the tokens that end an answer.
        pad: id of the token that fills shorter prompts.
    """

    prompts: list[list[int]]
    ends: list[int]
    pad: int


def questions_of(pairs: Sequence[TokenizedPair], model: PreTrainedModel, eos: int | None, pad: int) -> Questions:
    """Return the shortest distinct prompts of some pairs; none if all are too long, have images, or are empty."""
    prompts = {tuple(pair.chosen[: pair.chosen_start]) for pair in pairs if pair.images is None}
    short = sorted((prompt for prompt in prompts if 0 < len(prompt) <= LONGEST_PROMPT), key=lambda ids: (len(ids), ids))
    own = getattr(model.generation_config, "eos_token_id", None)
    ends = [*(own if isinstance(own, list) else [own]), eos]
    return Questions(
        prompts=[list(prompt) for prompt in short[:PROMPTS]],
        ends=list(dict.fromkeys(token for token in ends if token is not None)),
        pad=pad,
    )


@torch.no_grad()
def generate(model: PreTrainedModel, questions: Questions, new_tokens: int, seconds: float | None) -> list[list[int]]:
    """Return a greedy answer to each question, at most `new_tokens` long, its end token included.

    Args:
        model: in evaluation mode.
        seconds: answers are cut off after this time; None: never.
    """
    width = max(map(len, questions.prompts))
    ids = [[questions.pad] * (width - len(prompt)) + prompt for prompt in questions.prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in questions.prompts]
    sequences = model.generate(
        input_ids=torch.tensor(ids, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        generation_config=GenerationConfig(
            do_sample=False,
            max_new_tokens=new_tokens,
            max_time=seconds,
            eos_token_id=questions.ends or None,
            pad_token_id=questions.pad,
            use_cache=True,
        ),
    )
    return [_until_end(sequence[width:], questions.ends) for sequence in sequences.tolist()]


def answer_values(
    answers: Sequence[Sequence[int]], questions: Questions, step: PreferenceStep, execution: Execution
) -> dict[str, float]:
    """Return the values of some answers; `kl` only where the reference can score text that it has not seen."""
    grams = [tuple(answer[at : at + NGRAM]) for answer in answers for at in range(len(answer) - NGRAM + 1)]
    distinct = sum(len({tuple(answer[at : at + NGRAM]) for at in range(len(answer) - NGRAM + 1)}) for answer in answers)
    values = {
        "ended": fmean(answer[-1] in questions.ends for answer in answers),
        "length": fmean(map(len, answers)),
        "repetition": 1 - distinct / len(grams) if grams else 0.0,
    }
    reference = uncached(step.reference)
    if not isinstance(reference, NoReference | Stored):
        pairs = [
            TokenizedPair(prompt + list(answer), prompt + list(answer), len(prompt), len(prompt))
            for prompt, answer in zip(questions.prompts, answers, strict=True)
        ]
        scores, ref_logps = PreferenceStep(step.policy, reference, step.objective).score(pairs, execution)
        ratio = (scores.logps - ref_logps)[0::2].double().sum() / scores.scored_lengths[0::2].double().sum()
        values["kl"] = float(ratio)
    return values


def _until_end(answer: list[int], ends: Sequence[int]) -> list[int]:
    """An answer up to its first end token, which counts; what follows is padding."""
    at = next((at for at, token in enumerate(answer) if token in ends), len(answer) - 1)
    return answer[: at + 1]
