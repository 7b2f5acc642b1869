"""Commands about single steps: what they time exists, their tables, and rows that are measured at the same time."""

from __future__ import annotations

import argparse
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.commands import first_step, one_pass
from benchmarks.harness import jobs
from benchmarks.harness.first_step_parts import PARTS, Kernels, Parts, digest, without_threads
from benchmarks.harness.results import Results, Row
from benchmarks.rendering.real_pairs_tables import quality_table, with_all_seeds
from benchmarks.rendering.step_tables import first_step_table, one_pass_table
from wishbone.trainer import assembly, profiling, step_loop, trainer


def test_parts_are_timed_and_the_functions_put_back(monkeypatch: pytest.MonkeyPatch):
    before = trainer.noise_reason, assembly.choose_form, step_loop.StepLoop.compute_gradients
    with Parts() as parts:
        assert profiling.profile_rows.__name__ == "timed"
        with pytest.raises(AssertionError):
            trainer.noise_reason(nn.Linear(1, 1))
    assert (trainer.noise_reason, assembly.choose_form, step_loop.StepLoop.compute_gradients) == before
    (((began, took),),) = parts.since(0.0).values()
    assert began > 0 and took >= 0 and len(PARTS) > 10
    monkeypatch.setattr(trainer, "compile_trial_kernels", trainer.compile_trial_kernels)
    monkeypatch.setattr(assembly, "compile_ahead", assembly.compile_ahead)
    without_threads()
    assert trainer.compile_trial_kernels(nn.Linear(1, 1)) is None and assembly.compile_ahead(None) is None


def test_kernels_of_threads_and_of_the_main_one_are_told_apart():
    kernels = Kernels()
    facts = {"src": argparse.Namespace(name="norm"), "times": argparse.Namespace(total=1_500_000)}
    with kernels.counted():
        kernels._note(**facts, cache_hit=False, metadata=None)
        thread = threading.Thread(target=kernels._note, kwargs={**facts, "cache_hit": False})
        thread.start()
        thread.join()
        kernels._note(**facts, cache_hit=True)
    assert kernels.summary() == {
        "compiled_ahead": 1,
        "compiled_at_launch": 1,
        "read_ahead": 0,
        "read_at_launch": 1,
        "compiler_seconds": 3.0,
        "at_launch": ["norm 1.5"],
    }


def test_a_digest_sees_every_bit():
    a = torch.zeros(3, dtype=torch.bfloat16)
    b = a.clone()
    assert digest([a]) == digest([b])
    b[1] = -0.0
    assert digest([a]) != digest([b])


def test_full_caches_are_those_that_empty_ones_left():
    ahead, at_launch, full = (
        first_step.job("wishbone-bf16", "tiny:2", "tiny", cache, 2, 60) for cache in first_step.CACHES
    )
    assert ahead.caches == full.caches != at_launch.caches
    with pytest.raises(ValueError, match="wishbone-bf17"):
        first_step.job("wishbone-bf17", "tiny:2", "tiny", "empty", 2, 60)
    asked = {"carried": False, "steps": 1, "rounds": 1, "limit_seconds": 1.0}
    assert one_pass.job("wishbone-bf16", "tiny:2", "tiny", recorded=True, **asked).case == "tiny:2, recorded"


def row(kind: str, **facts: Any) -> Row:
    return {"kind": kind, "size": "8b", "system": "wishbone-fp8", "status": "ok"} | facts


def test_the_table_of_first_steps_says_whether_values_are_the_same():
    measured = {"import_seconds": 9.0, "load_seconds": 2.0, "first_step_seconds": 11.0, "trainer_seconds": 7.0}
    measured |= {"kernels": {"compiled_ahead": 20, "compiled_at_launch": 1}, "losses": [0.5], "adapter": "a"}
    results = Results(calls=[{}])
    for cache, adapter in (("empty", "a"), ("empty, at first launch", "a"), ("full", "b")):
        results.add(row("first_step", case=f"tiny:2, {cache}", **measured | {"adapter": adapter}))
    results.add(row("first_step", case="helpsteer:2, empty", status="failed", reason="killed"))
    assert [line[-1] for line in first_step_table(results).rows] == ["", "the same", "DIFFER", ""]


def test_one_pass_is_compared_with_two_by_median_and_best():
    found = {
        one_pass.TWO: {"seconds": [[2.0, 2.0, 4.0], [1.0, 1.0, 1.0]], "launched": [0.5], "losses": []},
        one_pass.ONE: {"seconds": [[1.0, 2.0, 2.0], [1.0, 1.0, 1.0]], "launched": [0.5], "losses": []},
    }
    figures = one_pass._figures(found, 8)
    assert figures["pairs_per_s"] == pytest.approx(16 / 3, abs=1e-3)
    assert figures["ways"][one_pass.ONE]["factor"] == 1.0 and figures["ways"][one_pass.ONE]["factor_best"] == 1.5
    results = Results(calls=[{}])
    results.add(row("one_pass", case="tiny:2", **figures))
    assert [line[1].partition(": ")[2] for line in one_pass_table(results).rows] == [one_pass.TWO, one_pass.ONE]


def of_a_seed(system: str, seed: int, loss: float) -> Row:
    run = {"seed": seed, "heldout_loss": loss, "heldout_accuracy": 0.5, "heldout_margin": 0.1, "last_epoch_loss": loss}
    run |= {"pairs_per_s": 2.0, "peak_gib": 1.0}
    facts = {"runs": [run], "training": {"heldout": 60}, "system": system}
    return row("quality", case=f"5 seeds, seed {seed}") | facts


def test_rows_with_a_seed_each_become_one_of_the_seeds_that_all_finished():
    results = Results(calls=[{}])
    for seed in (1, 0, 2):
        for system, more in (("a", 0.0), ("b", 1.0)):
            one = of_a_seed(system, seed, seed + more)
            results.add(one | ({"status": "failed", "reason": "killed"} if (system, seed) == ("a", 2) else {}))
    first, second = with_all_seeds(results.of("quality"))
    assert first["heldout_loss"] == [0, 1] and second["heldout_loss"] == [1, 2]
    assert first["case"] == "5 seeds, 2 of them finished by all"
    assert len(quality_table(results).rows) == 2


def test_rows_measured_at_the_same_time_are_kept_as_they_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    both = threading.Barrier(2, timeout=20)

    def run(self: Any, job: jobs.Job, following: jobs.Job | None) -> Row:
        both.wait()
        return {"status": "ok", "seconds": 1.0}

    monkeypatch.setattr(jobs.Line, "run", run)
    parser = argparse.ArgumentParser()
    jobs.add_options(parser)
    options = parser.parse_args(["--out", str(tmp_path / "rows.json"), "--commit", "c", "--minutes", "1.5"])
    late = jobs.Job("quality", "", None, "late", expected_seconds=600)
    planned = [jobs.Job("quality", "", None, "a"), late, jobs.Job("quality", "", None, "b")]
    found = jobs.run_jobs(planned, options, at_once=2)
    assert sorted(entry["case"] for entry in found.rows) == ["a", "b"]
    assert len(json.loads((tmp_path / "rows.json").read_text())["results"]) == 2
