"""What is found by comparing pairs, against a comparison of every two of them."""

from __future__ import annotations

import random
from itertools import combinations
from typing import Any

import numpy as np

from wishbone.check.ledger import Ledger, prompt_hash
from wishbone.check.lengths import cuts, drawn, spreads
from wishbone.check.places import Places


def some_pairs(count: int, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [{side: draw.choice(texts) for side, texts in SIDES.items()} for _ in range(count)]


SIDES: dict[str, list[Any]] = {
    "prompt": ["a", "b", [{"role": "user", "content": "b"}], [{"role": "system", "content": "b"}]],
    "chosen": ["x", "y", [{"role": "assistant", "content": "y"}], [{"role": "tool", "content": "y"}]],
    "rejected": ["x", "y", "z"],
}


def plain(pair: dict[str, Any]) -> tuple[str, str, str]:
    alone = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    texts = []
    for side, role in alone.items():
        value = pair[side]
        texts.append(
            value if isinstance(value, str) else value[0]["content"] + value[0]["role"] * (value[0]["role"] != role)
        )
    return texts[0], texts[1], texts[2]


def test_repeated_and_contradicting_pairs_are_those_of_a_comparison_of_every_two() -> None:
    for seed in range(30):
        pairs = some_pairs(20, seed)
        ledger = Ledger()
        for number, pair in enumerate(pairs, 1):
            ledger.add(pair, f"line {number}", [], (1, 1, 1))
        texts = [plain(pair) for pair in pairs]
        heldout = np.array([prompt_hash({"prompt": "a"})], dtype=np.uint64)
        duplicates, contradictions = ledger.compare(heldout)
        assert duplicates == [(texts.index(t), i) for i, t in enumerate(texts) if texts.index(t) < i]
        opposite = {
            i
            for a, b in combinations(range(len(texts)), 2)
            if (texts[a][0], texts[a][2], texts[a][1]) == texts[b] and texts[a][1] != texts[a][2]
            for i in (a, b)
        }
        assert set(np.flatnonzero(ledger.has("contradiction"))) == opposite
        assert {i for both in contradictions for i in both} <= opposite
        assert bool(opposite) == bool(contradictions)
        assert ledger.has("held_out").tolist() == [t[0] == "a" for t in texts]


def test_places_are_given_back() -> None:
    told = [
        "line 1",
        "line 3",
        "a.jsonl line 9",
        "a.jsonl line 10",
        "row 4 (line 7)",
        "row 5 (line 12)",
        "here",
        "line 2",
    ]
    places = Places()
    for place in told:
        places.add(place)
    shown = [places[index] for index in range(len(places))]
    assert shown == [place.partition(" (")[0] for place in told]


def test_lengths_and_cuts() -> None:
    draw = np.random.default_rng(3)
    lengths = {name: draw.integers(0, 3000, 500) for name in ("prompt", "chosen", "rejected")}
    found = spreads(lengths)
    for name, side in lengths.items():
        spread = found.sides[name]
        ordered = sorted(side.tolist())
        assert (spread.longest, spread.median) == (ordered[-1], ordered[249])
        expected = [
            sum(low <= n < high for n in ordered if n > 0)
            for low, high in zip(found.edges, (*found.edges[1:-1], 10**9), strict=False)
        ]
        assert list(spread.bars) == expected
        assert len(drawn(spread.bars)) == len(spread.bars)
    assert found.chosen_longer == np.mean(lengths["chosen"] > lengths["rejected"])
    table = {cut.limit: cut for cut in cuts(lengths, positions=3000)}
    assert list(table) == [512, 1024, 2048, 3000, 4096, 8192]
    rows = list(zip(*lengths.values(), strict=True))
    for limit, cut in table.items():
        assert cut.pairs == sum(p + max(c, r) > limit for p, c, r in rows)
        assert cut.lost == sum(p >= limit for p, c, r in rows)
        over = sum(max(p + n - limit, 0) for p, c, r in rows for n in (c, r))
        assert cut.tokens == over / sum(2 * p + c + r for p, c, r in rows)


def test_bars_of_rare_lengths_are_seen() -> None:
    assert drawn((0, 1, 10_000), " .:-=+*#@") == " .@"
