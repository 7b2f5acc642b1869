"""Scored completions become pairs by a named rule; equal scores are never a pair."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wishbone.data.formats import PairRule, read_pairs
from wishbone.data.formats.pairing import match
from wishbone.errors import RequestError

SCORES = st.lists(st.integers(-3, 3).map(float), min_size=2, max_size=6)


@given(SCORES, st.sampled_from(["best_worst", "best_rest", "all"]), st.sampled_from([0.0, 1.0, 2.5]))
def test_pairs_are_those_of_the_rule(scores: list[float], pairs: Any, margin: float) -> None:
    found = match(scores, PairRule(pairs, margin))
    apart = {(i, j) for i, j in permutations(range(len(scores)), 2) if scores[i] > scores[j]}
    wide = {(i, j) for i, j in apart if scores[i] - scores[j] >= margin}
    best, worst = scores.index(max(scores)), scores.index(min(scores))
    expected = {
        "best_worst": {(best, worst)} & wide,
        "best_rest": {(i, j) for i, j in wide if i == best},
        "all": wide,
    }[pairs]
    assert set(found.pairs) == expected and len(found.pairs) == len(expected)
    n = len(scores)
    asked = {"best_worst": 1, "best_rest": n - 1, "all": n * (n - 1) // 2}[pairs]
    assert len(found.pairs) + found.ties + found.narrow == asked
    assert (found.narrow > 0) <= (margin > 0)


def test_a_margin_counts_as_it_is_written() -> None:
    assert match([4.3, 4.0], PairRule(least_margin=0.3)).pairs == [(0, 1)]
    assert match([4.29, 4.0], PairRule(least_margin=0.3)) == ([], 0, 1)


def row(*scores: Any, name: str = "overall_score") -> dict[str, Any]:
    return {"instruction": "Q?", "completions": [{"response": f"{n}", name: s} for n, s in enumerate(scores)]}


def answers(row: dict[str, Any], layout: str, rule: PairRule) -> list[tuple[str, str]]:
    found = read_pairs(row, layout, rule=rule)
    return [(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in found.pairs]


def test_the_rule_reaches_every_kind_of_judgment() -> None:
    every = PairRule("all")
    assert answers(row(1, 3, 2), "scored_completions", every) == [("1", "2"), ("1", "0"), ("2", "0")]
    assert answers(row("1", "3.5", "2", name="fine-grained_score"), "scored_completions", PairRule("best_rest")) == [
        ("1", "2"),
        ("1", "0"),
    ]
    ranks = [{"rank": rank, "completion": [{"role": "assistant", "content": f"{rank}"}]} for rank in (2, 0, 1)]
    assert answers({"context": "Q?", "completions": ranks}, "ranked_completions", PairRule()) == [("0", "2")]
    strong = {"prompt": "Q?", "response_1": "1", "response_2": "2", "preference_strength": 1}
    assert answers(strong, "helpsteer2", PairRule()) == [("2", "1")]
    assert answers(strong, "helpsteer2", PairRule(least_margin=2)) == []
    assert answers({**strong, "preference_strength": 0}, "helpsteer2", every) == []
    reddit = {"history": "Q?", "human_ref_A": "a", "human_ref_B": "b", "labels": 0, "score_A": 2, "score_B": 9}
    assert answers(reddit, "shp", PairRule(least_margin=7)) == [("b", "a")]
    assert answers(reddit, "shp", PairRule(least_margin=8)) == []


def test_completions_without_a_score_are_left_out_and_counted() -> None:
    found = read_pairs(row(1, None, 3), "scored_completions", rule=PairRule("all"))
    assert (len(found.pairs), found.unscored) == (1, 1)
    with pytest.raises(RequestError, match="has 1 scored completions; a pair needs two"):
        read_pairs(row(1, None), "scored_completions")
    with pytest.raises(RequestError, match="completions item 2 is text \\('good'\\); it must be a finite number"):
        read_pairs(row(1, "good"), "scored_completions")
    with pytest.raises(RequestError, match="ratings has 1 items; generations has 2"):
        read_pairs({"instruction": "Q?", "generations": ["a", "b"], "ratings": [1]}, "ratings")


@pytest.mark.parametrize(
    ("layout", "row", "problem"),
    [
        ("arena", {"conversation_a": [], "conversation_b": [], "winner": "claude"}, "winner is 'claude'"),
        (
            "safe_rlhf",
            {"prompt": "Q", "response_0": "a", "response_1": "b", "better_response_id": 2},
            "better_response_id is 2; it must be 0 or 1",
        ),
        ("shp", {"history": "Q", "human_ref_A": "a", "human_ref_B": "b", "labels": None}, "labels is empty"),
        (
            "helpsteer3",
            {"context": "Q", "response1": "a", "response2": "b", "overall_preference": float("nan")},
            "overall_preference is a number (nan)",
        ),
    ],
)
def test_a_judgment_that_does_not_fit_is_named(layout: str, row: dict[str, Any], problem: str) -> None:
    with pytest.raises(RequestError) as refused:
        read_pairs(row, layout)
    assert problem in str(refused.value)


def test_turns_of_helpsteer2_and_nectar_are_messages() -> None:
    marked = "Hi\n<extra_id_1>Assistant\nHello.\n<extra_id_1>User\nQ?"
    turns = [("user", "Hi"), ("assistant", "Hello."), ("user", "Q?")]
    two = {"response_1": "a", "response_2": "b", "preference_strength": -1}
    (pair,) = read_pairs({"prompt": marked, **two}, "helpsteer2").pairs
    assert [(m["role"], m["content"]) for m in pair["prompt"]] == turns
    talk = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Q?\n\nAssistant: "
    ranked = [{"answer": "a", "rank": 1.0}, {"answer": "b", "rank": 2.0}]
    (pair,) = read_pairs({"prompt": talk, "answers": ranked}, "ranked_answers").pairs
    assert [(m["role"], m["content"]) for m in pair["prompt"]] == turns
