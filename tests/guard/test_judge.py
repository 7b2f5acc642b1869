from __future__ import annotations

import json

import pytest

from wishbone.guard.judge import SIGNS, Judge

HEALTHY = {
    "chosen_drift": 0.01,
    "rejected_drift": -0.2,
    "margin": 1.0,
    "saturated": 0.1,
    "entropy": 2.0,
    "ended": 0.75,
    "length": 20.0,
    "repetition": 0.02,
    "kl": 0.05,
    "gradient": 1.0,
    "gradient_growth": 1.0,
    "reward_spread": 0.0,
    "late": 1.0,
}
ILL = {
    "displacement": {"chosen_drift": -0.9},
    "far": {"kl": 2.5},
    "repetition": {"repetition": 0.5},
    "ends": {"ended": 0.0},
    "entropy": {"entropy": 0.3},
    "gradient": {"gradient_growth": 30.0},
    "falling": {"chosen_drift": -0.3},
    "moving": {"kl": 1.2},
    "saturation": {"saturated": 1.0},
    "length": {"length": 32.0},
}


def test_every_sign_is_tested() -> None:
    assert {sign.name for sign in SIGNS} == {*ILL, "noise"}


@pytest.mark.parametrize("name", ILL)
def test_a_sign_alarms_when_it_is_there_twice_in_a_row(name: str) -> None:
    judge = Judge()
    ill = {**HEALTHY, **ILL[name]}
    assert judge.judge(0, HEALTHY).seen == []
    first = judge.judge(10, ill)
    assert name in first.seen
    assert first.alarms == []
    assert first.unconfirmed
    second = judge.judge(15, ill)
    assert [(alarm.since, alarm.step) for alarm in second.alarms if alarm.sign.name == name] == [(10, 15)]
    assert judge.judge(20, ill).alarms == []  # said once


def test_one_measurement_between_two_others_is_no_alarm() -> None:
    judge = Judge()
    for step, values in enumerate([HEALTHY, {**HEALTHY, "kl": 3.0}, HEALTHY, {**HEALTHY, "kl": 3.0}, HEALTHY]):
        assert judge.judge(step, values).alarms == []


def test_an_alarm_comes_again_only_after_the_sign_was_absent_twice() -> None:
    judge, far = Judge(), {**HEALTHY, "kl": 3.0}
    course = [HEALTHY, far, far, HEALTHY, far, far, HEALTHY, HEALTHY, far, far]
    alarmed = [step for step, values in enumerate(course) if judge.judge(step, values).alarms]
    assert alarmed == [2, 9]


def test_noise_of_the_first_rewards_is_compared_with_the_margin_late_in_the_run() -> None:
    noisy = {**HEALTHY, "reward_spread": 0.3, "margin": 0.1}
    judge = Judge()
    judge.judge(0, {**noisy, "late": 0.0})
    assert judge.judge(5, {**noisy, "late": 0.0}).seen == []
    assert judge.judge(10, noisy).seen == ["noise"]
    assert "0.300" in judge.judge(15, noisy).alarms[0].text


def test_what_was_not_measured_is_not_judged() -> None:
    judge = Judge()
    judge.judge(0, HEALTHY)
    assert judge.judge(1, {"chosen_drift": 0.0, "rejected_drift": 0.0, "margin": 0.0}).seen == []


def test_going_on_from_a_saved_state_judges_alike() -> None:
    judge, far = Judge(), {**HEALTHY, "kl": 3.0}
    judge.judge(0, HEALTHY)
    judge.judge(5, far)
    resumed = Judge()
    resumed.restore(json.loads(json.dumps(judge.state())))
    assert resumed.judge(7, far) == judge.judge(7, far)
    assert resumed.state() == judge.state()
