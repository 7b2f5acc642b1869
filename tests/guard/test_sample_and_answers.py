"""What the guard measures equals what plain transformers and arithmetic say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from guard.guarded_runs import guarded

from wishbone.data.batch import TokenizedPair
from wishbone.engine.execution import UNLIMITED
from wishbone.guard.answers import NEW_TOKENS, Questions, answer_values, generate, questions_of
from wishbone.guard.sample import Sample
from wishbone.preference.metrics import PairMetrics
from wishbone.trainer.trainer import DPOTrainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> DPOTrainer:
    trainer = guarded(tmp_path_factory.mktemp("run"), max_steps=8)
    trainer.train()
    trainer.model.eval()
    return trainer


def sequence_logp(trainer: DPOTrainer, ids: list[int], start: int) -> float:
    """log p of the tokens from `start` on, from the model's own logits."""
    with torch.no_grad():
        logits = trainer.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return float(logits[range(start - 1, len(ids) - 1), ids[start:]].sum())


def held_out(trainer: DPOTrainer) -> list[TokenizedPair]:
    return trainer.data_collator([trainer.eval_dataset[at] for at in range(8)])["pairs"]


@pytest.mark.slow
def test_drift_and_margin_are_those_of_the_models_own_logits(trained: DPOTrainer) -> None:
    pairs = held_out(trained)
    sample = Sample(pairs, heldout=True, beta=0.1, moves=False)
    values = sample.measure(trained.preference_step, UNLIMITED)
    drifts: dict[str, list[float]] = {"chosen": [], "rejected": []}
    ratios = []
    for pair in pairs:
        for (ids, start), name in zip(pair.sequences(), drifts, strict=True):
            policy = sequence_logp(trained, ids, start)
            with trained.model.disable_adapter():
                ratio = policy - sequence_logp(trained, ids, start)
            drifts[name].append(ratio / (len(ids) - start))
            ratios.append(ratio)
    assert values["chosen_drift"] == pytest.approx(sum(drifts["chosen"]) / 8, abs=1e-5)
    assert values["rejected_drift"] == pytest.approx(sum(drifts["rejected"]) / 8, abs=1e-5)
    margins = [0.1 * (chosen - rejected) for chosen, rejected in zip(ratios[0::2], ratios[1::2], strict=True)]
    assert values["margin"] == pytest.approx(sum(margins) / 8, abs=1e-5)
    assert values["accuracy"] == sum(margin > 0 for margin in margins) / 8
    again = sample.measure(trained.preference_step, UNLIMITED)  # with the reference's stored values
    assert again == pytest.approx(values, abs=1e-6)


@pytest.mark.slow
def test_an_evaluation_gives_the_same_values_without_a_second_pass(trained: DPOTrainer) -> None:
    step = trained.preference_step
    sample = Sample(held_out(trained), heldout=True, beta=0.1, moves=False)
    measured = sample.measure(step, UNLIMITED)
    assert sample.observed(step) is None  # nothing was evaluated yet
    evaluated = [pair for batch in trained.get_eval_dataloader() for pair in batch["pairs"]]
    step.evaluate(evaluated[:5], PairMetrics(0.1), UNLIMITED, sample.observe)
    assert sample.observed(step) is None  # not all of the sample
    for group in (evaluated[:5], evaluated[5:]):
        step.evaluate(group, PairMetrics(0.1), UNLIMITED, sample.observe)
    assert sample.observed(step) == pytest.approx(measured, abs=1e-5)


@pytest.mark.slow
def test_answers_are_the_greedy_ones_and_their_divergence_that_of_the_logits(trained: DPOTrainer) -> None:
    model, pairs = trained.preference_step.policy.causal_lm, held_out(trained)
    questions = questions_of(pairs, model, 1, 2)
    assert questions.prompts == sorted(questions.prompts, key=len)
    answers = generate(model, questions, NEW_TOKENS, None)
    total = tokens = 0.0
    for prompt, answer in zip(questions.prompts, answers, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + NEW_TOKENS and (len(ids) == len(prompt) or ids[-1] not in questions.ends):
            with torch.no_grad():
                ids.append(int(trained.model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert ids[len(prompt) :] == answer
        policy = sequence_logp(trained, ids, len(prompt))
        with trained.model.disable_adapter():
            total += policy - sequence_logp(trained, ids, len(prompt))
        tokens += len(answer)
    values = answer_values(answers, questions, trained.preference_step, UNLIMITED)
    assert values["kl"] == pytest.approx(total / tokens, abs=1e-5)


def test_repetition_is_the_share_of_4_grams_that_were_there_before(trained: DPOTrainer) -> None:
    questions = Questions(prompts=[[5, 6], [7, 8]], ends=[1], pad=2)
    answers = [[3, 4, 5, 6, 3, 4, 5, 6, 1], [9, 10, 11]]
    values = answer_values(answers, questions, trained.preference_step, UNLIMITED)
    assert values["repetition"] == pytest.approx(1 / 6)  # 3456 4563 5634 6345 3456 4561
    assert values["ended"] == 0.5
    assert values["length"] == 6


def test_generation_stops_when_its_time_is_over(trained: DPOTrainer) -> None:
    model = trained.preference_step.policy.causal_lm
    questions = questions_of(held_out(trained), model, None, 2)
    answers = generate(model, Questions(questions.prompts, [], 2), 200, 0.02)
    assert max(map(len, answers)) < 200


def test_long_prompts_are_left_out(tmp_path: Path, trained: DPOTrainer) -> None:
    pairs = [TokenizedPair([5] * 600 + [6], [5] * 600 + [7], 600, 600), TokenizedPair([5, 6], [5, 7], 1, 1)]
    assert questions_of(pairs, trained.preference_step.policy.causal_lm, 1, 2).prompts == [[5]]
