"""Figures that commands derive from what they measured."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.commands import log_probabilities, reference_store
from benchmarks.harness.children import _environment
from benchmarks.harness.neighbours import Neighbours
from benchmarks.harness.pairs import read_pairs, split_pairs, write_pairs
from benchmarks.harness.results import Results


def test_pairs_are_taken_from_both_ends(tmp_path: Path):
    rows = [{"prompt": f"p{i}", "chosen": f" c{i}", "rejected": f" r{i}"} for i in range(5)]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_pairs(write_pairs(tmp_path / "out.json", str(data), 3, 2))
    assert [row["prompt"] for row in found["train"]] == ["p0", "p1", "p2"]
    assert [row["prompt"] for row in found["heldout"]] == ["p3", "p4"]
    assert split_pairs(str(data), 2, 0)["heldout"] == []
    with pytest.raises(SystemExit, match=r"has 5 pairs, fewer than 4 \+ 2"):
        split_pairs(str(data), 4, 2)


def test_nobody_names_a_reference_store_for_a_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # a store that is named is used in FP8, too, and stored values put the noise of two passes into later epochs
    monkeypatch.setenv("WISHBONE_REFERENCE_STORE", "named.sqlite")
    environment = _environment(tmp_path, tmp_path, {"OWN": "1"})
    assert "WISHBONE_REFERENCE_STORE" not in environment and environment["OWN"] == "1"
    assert Path(environment["WISHBONE_CACHE"]).is_relative_to(tmp_path)


def test_differences_of_log_probabilities_are_summed_by_completion():
    exact = {"logps": np.array([-1.0, -2.0, -3.0, -4.0, -5.0]), "hits": np.array([1, 1, 0, 0, 1], dtype=bool),
             "lengths": np.array([2, 1, 1, 1])}  # fmt: skip
    moved = {**exact, "logps": exact["logps"] + [0.5, -0.25, 1.0, 0.0, -0.25], "hits": ~exact["hits"]}
    found = log_probabilities.differences(moved, exact)
    assert found["token_mean_absolute"] == pytest.approx(0.4)
    assert found["token_bias"] == pytest.approx(0.2)
    assert found["completion_mean_absolute"] == pytest.approx((0.25 + 1.0 + 0.0 + 0.25) / 4)
    assert found["margin_mean_absolute"] == pytest.approx((0.75 + 0.25) / 2)
    assert found["perplexity_ratio"] == pytest.approx(np.exp(-0.2))
    assert found["greedy_agreement"] == 0.0


def sweep(speeds: list[float], shift: float = 0.0) -> Results:
    results = Results([{}])
    for stored in (True, False):
        for beta, speed in zip(reference_store.BETAS, speeds, strict=True):
            row: dict[str, Any] = {"kind": "reference_store", "size": None, "system": reference_store.SYSTEM}
            row |= {"case": reference_store.case_of(beta, stored), "status": "ok", "pairs_per_s": speed}
            results.add({**row, "losses": [0.5, 0.25 + shift * stored]})
    return results


def test_a_sweep_must_be_faster_and_lose_nothing():
    assert reference_store.verdict(sweep([1.0, 1.3, 1.4])) is None
    slow = reference_store.verdict(sweep([1.0, 1.2, 1.4]))
    assert slow is not None and slow.startswith("later runs are 1.20 times as fast")
    wrong = reference_store.verdict(sweep([1.0, 1.3, 1.4], shift=1e-3))
    assert wrong is not None and "losses differ by 0.001" in wrong
    assert reference_store.verdict(Results([{}])) == "not every run has a result"


def test_other_processes_are_seen():
    neighbours = Neighbours()
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    time.sleep(1.5)
    share = neighbours.share()
    busy.kill()
    busy.wait()
    assert share is not None and 0.05 < share < 1.1
