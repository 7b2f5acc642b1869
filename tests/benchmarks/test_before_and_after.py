"""Other code beside this one: which package a process imports, whose turn it is, factors; and hosts made slow."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.commands import before_and_after
from benchmarks.harness import slow_host, turn_callback
from benchmarks.harness.children import Child, child
from benchmarks.harness.imported import imported_package
from benchmarks.harness.results import ROOT, Results, Row, current_commit
from benchmarks.harness.turns import take_turns
from benchmarks.rendering.step_tables import before_and_after_table

WORKER = """
import json, os, sys
folder, progress = os.path.dirname(sys.argv[3]), open(sys.argv[4], "a", buffering=1)
request = json.load(open(sys.argv[3]))
for turn in range(3):
    if not sys.stdin.readline():
        sys.exit("no turn")
    if turn == request["fails"]:
        raise ValueError("of no use")
    open(request["shared"], "a").write(request["name"])
    progress.write(json.dumps({"turn": turn}) + "\\n" if turn < 2 else json.dumps({"result": {"path": os.environ["PYTHONPATH"]}}))
"""  # noqa: E501 - a stand-in for the worker


def stand_in(name: str, folder: Path, fails: int | None = None) -> Child:
    script, python = folder / "worker.py", folder / "python"
    script.write_text(WORKER)
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(script))} "$@"\n')
    python.chmod(0o755)
    request = {"name": name, "shared": str(folder / "shared"), "fails": fails}
    return Child(request, name, folder, str(python), source=folder / name / "src")


def test_processes_take_turns_and_each_imports_its_own_package(tmp_path: Path):
    found = take_turns({name: stand_in(name, tmp_path) for name in "ab"}, 20)
    assert (tmp_path / "shared").read_text() == "ababab"
    for name in "ab":
        places = found[name]["path"].split(os.pathsep)
        assert places[:2] == [str(ROOT), str(tmp_path / name / "src")]
        assert str(ROOT / "src") not in places[:2]


def test_one_that_fails_gives_its_turns_to_the_other(tmp_path: Path):
    found = take_turns({"a": stand_in("a", tmp_path, fails=1), "b": stand_in("b", tmp_path)}, 20)
    assert (tmp_path / "shared").read_text() == "abbb"
    assert found["a"]["status"] == "failed" and found["a"]["reason"] == "ValueError: of no use"
    assert found["b"]["status"] == "ok"


def test_turns_end_with_the_time(tmp_path: Path):
    with child({"name": "a"}, "a", tmp_path, "/bin/cat") as waits:  # never ends a turn
        waits.request["shared"] = ""
        found = take_turns({"a": waits}, 0.5)
    assert found["a"]["status"] == "failed"


def test_a_training_waits_after_its_first_steps_and_then_after_every_few(monkeypatch: pytest.MonkeyPatch):
    written: list[Row] = []
    begun: list[Any] = []
    progress: Any = SimpleNamespace(write=lambda **facts: written.append(facts))
    told = iter(["go\n"] * 3 + [""])
    monkeypatch.setattr(turn_callback.sys, "stdin", SimpleNamespace(readline=lambda: next(told)))
    turns = turn_callback.Turns(2, 3, progress, begun.append)
    turns.on_train_begin(None, None, None, model="model")
    for step in range(1, 9):
        turns.on_step_end(None, SimpleNamespace(global_step=step, max_steps=8), None)
    assert begun == ["model"] and [facts["turn"] for facts in written] == [0, 1]
    next(told)
    with pytest.raises(SystemExit, match="has ended"):
        turns.on_step_end(None, SimpleNamespace(global_step=2, max_steps=8), None)


def test_a_process_that_imported_other_code_than_asked_for_measures_nothing(tmp_path: Path):
    import wishbone

    found = imported_package(ROOT / "src")
    assert wishbone.__file__.endswith(found["file"]) and len(found["code"]) == 16
    with pytest.raises(SystemExit, match="not from"):
        imported_package(tmp_path)


def test_a_folder_inside_of_a_checkout_has_no_commit_of_its_own(tmp_path: Path):
    assert current_commit(tmp_path) is None
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "inner").mkdir()
    assert current_commit(tmp_path / "inner") is None


def a_run(*seconds: float) -> Row:
    return {
        "status": "ok",
        "pairs_per_s": 1.0,
        "step_seconds": list(seconds),
        "first_step_seconds": seconds[0],
        "peak_gib": 1.0,
        "commit": "c",
    }


def test_factors_are_of_the_same_steps():
    ways = {"before": a_run(9, 9, 9, 9, 2, 4, 4), "after": a_run(9, 9, 9, 9, 1, 4, 2)}
    found = before_and_after.compared(ways, warm_up=5, pairs=8)
    assert (found["factor"], found["median_factor"]) == (1.333, 1.5)
    assert (found["factor_from_step_5"], found["median_factor_from_step_5"]) == (1.429, 2.0)
    assert ways["before"]["pairs_per_s"] == 2.0 and ways["after"]["pairs_per_s_from_step_5"] == round(24 / 7, 3)
    results = Results(calls=[{}])
    row = {"kind": "before_and_after", "size": "8b", "system": "wishbone-fp8", "case": "tiny:2"}
    results.add(row | found)
    assert before_and_after_table(results).rows[0][2:7] == ("2.00", "2.67", "1.333", "1.500", "1.429")
    failed = {"status": "failed", "reason": "out of memory", "phase": "step 1 of 2"}
    found = before_and_after.compared({**ways, "before": failed}, warm_up=5, pairs=8)
    assert (found["status"], found["way"], found["reason"]) == ("failed", "before", "out of memory")
    results.add(row | found)
    table = before_and_after_table(results)
    assert not table.rows and "out of memory" in table.notes[0]


def test_only_systems_of_wishbone_have_a_before():
    asked = {"warm_up": 1, "turn": 1, "rounds": 2, "look": False, "limit_seconds": 1.0}
    assert before_and_after.job("wishbone-fp8", "tiny:2", "tiny", **asked).settings["timed"] == 2
    with pytest.raises(ValueError, match="throughput"):
        before_and_after.job("unsloth-bf16", "tiny:2", "tiny", **asked)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_a_host_made_slow_is_what_it_was_afterwards(monkeypatch: pytest.MonkeyPatch):
    times = iter([1.0, 2.0])
    monkeypatch.setattr(slow_host, "loop_seconds", lambda: next(times))
    monkeypatch.setattr(slow_host, "CORES", 1)
    before = os.sched_getaffinity(0)
    with slow_host.slow_host(0.6) as said:
        (core,) = os.sched_getaffinity(0)
        assert core in before
        assert said["speed"] == 0.5 and "on purpose" in said["made_slow"] and "niceness 2" in said["made_slow"]
        assert json.dumps(said)
    assert os.sched_getaffinity(0) == before


def test_the_process_of_the_other_checkout_may_have_other_options():
    assert before_and_after.with_options("wishbone-nf4-small", "") == "wishbone-nf4-small"
    name = before_and_after.with_options("wishbone-nf4-small:style=trl", "cuda_graphs=off,token_budget=4096")
    assert name == "wishbone-nf4-small:style=trl:cuda_graphs=off:token_budget=4096"
