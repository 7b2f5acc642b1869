from __future__ import annotations

import math
import random
import re
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wishbone.report.axis import linear_axis, log_axis
from wishbone.report.chart import Chart, Line, draw
from wishbone.report.html import STYLE
from wishbone.report.outcome import in_words
from wishbone.report.series import ends, running_mean, thin

MINUS = "\N{MINUS SIGN}"
finite_values = st.floats(-1e100, 1e100, allow_nan=False)


def parsed(label: str) -> float:
    return float(label.replace(MINUS, "-").replace(",", ""))


def test_running_mean_is_the_mean_of_the_window_and_keeps_gaps() -> None:
    series = [(1, 2.0), (2, 4.0), (3, math.nan), (4, 9.0), (5, 1.0)]
    means = running_mean(series, 3)
    assert [step for step, _ in means] == [1, 2, 3, 4, 5]
    assert [value for _, value in means if not math.isnan(value)] == pytest.approx([3.0, 5.0, 14 / 3, 5.0])
    assert math.isnan(means[2][1])


def test_ends_are_means_of_a_tenth() -> None:
    assert ends([(i, float(i)) for i in range(40)]) == (1.5, 37.5)
    assert ends([(1, 5.0), (2, math.inf), (3, 7.0)]) == (5.0, 7.0)
    assert ends([(1, 5.0), (2, math.nan)]) is None


def test_thinning_keeps_both_ends_every_spike_and_every_gap() -> None:
    noise = random.Random(0)
    series = [(step, noise.random()) for step in range(100_000)]
    series[54_321] = (54_321, 50.0)
    series[77_777] = (77_777, -50.0)
    series[12_345] = (12_345, math.nan)
    kept = thin(series, 400)
    assert len(kept) <= 400
    assert kept[0] == series[0]
    assert kept[-1] == series[-1]
    assert {series[54_321], series[77_777]} <= set(kept)
    assert any(math.isnan(value) for _, value in kept)
    assert [step for step, _ in kept] == sorted(step for step, _ in kept)


@given(st.lists(finite_values, min_size=1, max_size=20))
@example([5e-324])
@example([-1e-13, 1e-14])
def test_a_linear_axis_shows_all_values_at_few_ticks_that_say_where_they_are(values: list[float]) -> None:
    axis = linear_axis(values, 200.0, 10.0)
    assert all(10 - 1e-6 <= axis.at(value) <= 200 + 1e-6 for value in values)
    assert 2 <= len(axis.ticks) <= 7
    assert len(set(axis.labels)) == len(axis.labels)
    step = axis.ticks[1] - axis.ticks[0]
    assert all(abs(parsed(label) - tick) <= 0.02 * step for tick, label in zip(axis.ticks, axis.labels, strict=True))


@given(st.integers(1, 10**9))
def test_steps_have_whole_ticks(last: int) -> None:
    axis = linear_axis([0, last], 0.0, 100.0, whole=True)
    assert (axis.low, axis.high) == (0, last)
    assert all(tick == int(tick) for tick in axis.ticks)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.13, 0.69], ["0.2", "0.4", "0.6"]),
        ([-1.5, 0.4], [f"{MINUS}1.5", f"{MINUS}1.0", f"{MINUS}0.5", "0"]),
        ([0.0, 1e-5], ["0", "2.5e-6", "5e-6", "7.5e-6", "1e-5"]),
        ([0.0, 24_000.0], ["0", "10,000", "20,000"]),
    ],
)
def test_ticks_are_round_numbers(values: list[float], labels: list[str]) -> None:
    assert list(linear_axis(values, 0.0, 1.0).labels) == labels


def test_a_logarithmic_axis_has_powers_of_ten_at_equal_distances() -> None:
    axis = log_axis([0.03, 700.0], 0.0, 50.0)
    assert axis.labels == ("0.01", "0.1", "1", "10", "100", "1000")
    assert [axis.at(tick) for tick in axis.ticks] == pytest.approx([0, 10, 20, 30, 40, 50])


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_written_with_four_digits(value: float) -> None:
    written = Fraction(in_words(value).replace(MINUS, "-").replace(",", ""))
    assert abs(written - Fraction(value)) <= abs(Fraction(value)) / 1000 + (
        0 if abs(value) < 1e-4 else Fraction(1, 20_000)
    )


def test_numbers_in_words() -> None:
    assert in_words(0.693147) == "0.6931"
    assert in_words(-1234.56) == f"{MINUS}1,235"
    assert in_words(5e-6) == "5.000e-06"
    assert in_words(0.8612, percent=True) == "86.1 %"
    assert in_words(math.nan) == "not finite"


def test_a_line_of_one_point_is_a_dot_that_can_be_seen() -> None:
    lines = (Line([(1, 0.5)]), Line([(1, 0.5), (2, 0.25)], tone="two"))
    drawn = draw(Chart("loss", "Loss", "", lines))
    assert drawn.count('class="alone"') == 1
    assert re.search(r"\.alone { stroke-width: [4-9]", STYLE.read_text(encoding="utf-8"))
