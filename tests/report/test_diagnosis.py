from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from fake_run import WriteRun

from wishbone.report.diagnosis import diagnose
from wishbone.report.outcome import outcome
from wishbone.report.run_directory import RunRecord, read_run

STEPS = range(1, 101)


def record(**metrics: list[tuple[float, float]]) -> RunRecord:
    names = {name.replace("__", "/"): points for name, points in metrics.items()}
    return RunRecord(path=Path("run"), metrics=names)


def titles(of: RunRecord) -> list[str]:
    return [finding.title for finding in diagnose(of)]


def test_a_healthy_run_has_no_findings(write_run: WriteRun) -> None:
    assert titles(read_run(write_run())) == []


def test_both_rewards_falling_is_named_with_the_held_out_numbers(write_run: WriteRun) -> None:
    of = read_run(write_run(collapse=True))
    assert titles(of) == ["Chosen answers became less likely"]
    evidence = diagnose(of)[0].evidence
    last = of.metrics["eval_rewards/chosen"][-1][1]
    assert f"{abs(last):.4f}" in evidence


def test_a_rejected_reward_falling_alone_is_no_collapse() -> None:
    falling = record(
        rewards__chosen=[(s, 0.0) for s in STEPS],
        rewards__rejected=[(s, -s / 50) for s in STEPS],
        rewards__margins=[(s, s / 50) for s in STEPS],
    )
    assert titles(falling) == []


def test_a_loss_that_is_not_finite_is_a_problem_and_comes_first(write_run: WriteRun) -> None:
    run = write_run(collapse=True)
    of = read_run(run)
    of.metrics["loss"][40] = (41, math.nan)
    of.metrics["loss"][50] = (51, math.inf)
    findings = diagnose(of)
    assert findings[0].severity == "problem"
    assert "2 of 120 logged steps, first at step 41" in findings[0].evidence
    assert len(findings) == 2


def test_a_flat_margin_is_little_learning_and_a_zero_gradient_is_its_reason() -> None:
    flat = record(rewards__margins=[(s, 0.001 * (s % 2)) for s in STEPS], grad_norm=[(s, 1.0) for s in STEPS])
    assert titles(flat) == ["Little was learned"]
    assert "gradient" not in diagnose(flat)[0].evidence
    dead = record(rewards__margins=[(s, 0.0) for s in STEPS], grad_norm=[(s, 0.0) for s in STEPS])
    assert "gradient is zero" in diagnose(dead)[0].evidence


@pytest.mark.parametrize(("right_from", "found"), [(10, True), (60, False)])
def test_pairs_told_apart_early(right_from: int, found: bool) -> None:
    ranked = record(rewards__accuracies=[(s, 1.0 if s >= right_from else 0.5) for s in STEPS])
    assert (titles(ranked) == ["The model tells the pairs apart very early"]) is found


def test_a_held_out_loss_that_turns_upwards() -> None:
    training = [(s, 0.7 - s / 200) for s in STEPS]
    turning = record(loss=training, eval_loss=[(0, 0.7), (50, 0.5), (100, 0.6)])
    assert titles(turning) == ["The held-out loss rises again"]
    assert "step 50" in diagnose(turning)[0].evidence
    assert titles(record(loss=training, eval_loss=[(0, 0.7), (50, 0.5), (100, 0.51)])) == []


def test_weights_that_a_guard_restored_are_no_rise_of_the_held_out_loss() -> None:
    training = [(s, 0.7 - s / 200) for s in STEPS]
    stopped = record(loss=training, eval_loss=[(0, 0.7), (50, 0.3), (100, 0.2), (100, 0.4)])
    assert titles(stopped) == ["The held-out loss rises again"]
    assert titles(replace(stopped, summary={"guard": {"stopped_at_step": 100, "restored_step": 40}})) == []


def test_the_outcome_is_what_the_summary_measured(write_run: WriteRun) -> None:
    of = read_run(write_run())
    loss, accuracy, margin = outcome(of).changes[:3]
    assert (loss.before, loss.after) == (of.summary["heldout_before"]["loss"], of.summary["heldout_after"]["loss"])
    assert accuracy.shown()[0] == "ties", "equal rewards rank no pair, which is not an accuracy of 0 %"
    assert margin.shown()[2].startswith("+1.28")


def test_a_result_that_ranks_no_pair_is_no_accuracy_of_zero() -> None:
    """As after a run that was stopped with the weights of its first step."""
    first = {"rewards/accuracies": 0.0, "rewards/margins": 0.0}
    for before, after, shown in (
        (first, first, ("ties", "ties", "\N{EN DASH}")),
        (first | {"rewards/accuracies": 0.5}, first, ("50.0 %", "ties", "\N{EN DASH}")),
        (first, {"rewards/accuracies": 0.0, "rewards/margins": -1.0}, ("ties", "0.0 %", "\N{EN DASH}")),
    ):
        of = replace(record(), summary={"heldout_before": before, "heldout_after": after, "pairs": {"heldout": 1}})
        assert outcome(of).changes[0].shown() == shown
        assert outcome(of).caption == "Measured on the 1 held-out pair, which was not trained on."


def test_a_run_that_ended_before_its_second_evaluation_has_held_out_pairs() -> None:
    of = replace(record(loss=[(s, float(s)) for s in STEPS]), summary={"pairs": {"heldout": 5}})
    assert "because the 5 held-out pairs were not measured twice yet" in outcome(of).caption


def test_the_outcome_of_an_unfinished_run_is_that_of_its_evaluations(write_run: WriteRun) -> None:
    measured = outcome(read_run(write_run(finished=False)))
    assert measured.times == ("Step 0", "Step 120")
    assert "the run has not ended" in measured.caption


def test_the_outcome_without_held_out_pairs_is_that_of_the_training_pairs() -> None:
    measured = outcome(record(loss=[(s, float(s)) for s in STEPS]))
    assert [(c.metric, c.before, c.after) for c in measured.changes] == [("loss", 5.5, 95.5)]
    assert "training pairs" in measured.caption


def test_values_of_any_type_in_the_summary_are_survived(write_run: WriteRun) -> None:
    of = read_run(write_run())
    of.summary["heldout_before"] = {"loss": "low", "rewards/margins": None, "entropy": True, "rewards/chosen": math.nan}
    of.summary["pairs"] = 7
    assert [change.metric for change in outcome(of).changes] == ["rewards/chosen"]
    assert outcome(of).changes[0].shown()[0] == "not finite"
