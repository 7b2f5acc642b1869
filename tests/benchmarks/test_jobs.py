"""Jobs and their child processes: their order, how a failure becomes a row, how a search goes on."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

import pytest

from benchmarks.commands import suite
from benchmarks.harness import jobs
from benchmarks.harness.children import Child


def test_rows_are_chosen_in_the_order_of_the_texts():
    found = suite.chosen(suite.h200(), "1b unsloth,longest,1b")
    assert [(job.kind, job.size, job.system.partition("-")[0]) for job in found] == [
        ("throughput", "1b", "unsloth"),
        ("longest", "8b", "wishbone"),
        ("longest", "8b", "unsloth"),
        ("throughput", "1b", "wishbone"),
        ("throughput", "1b", "wishbone"),
        ("throughput", "1b", "trl"),
    ]
    assert suite.chosen(suite.h200(), "") == suite.h200()


def child_of(code: str, folder: Path) -> Child:
    """A child whose interpreter runs `code` in place of the worker."""
    python = interpreter_that_runs(f"import sys\nprogress = open(sys.argv[4], 'a', buffering=1)\n{code}\n", folder)
    return Child({"kind": "throughput"}, "child", folder, str(python))


def interpreter_that_runs(code: str, folder: Path) -> Path:
    """An executable that runs `code` and nothing else. A shell starts it, because `#!` takes no path with a space."""
    script, python = folder / "instead.py", folder / "python"
    script.write_text(code)
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(script))} "$@"\n')
    python.chmod(0o755)
    return python


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ValueError('no such <thing>')", "ValueError: no such <thing>"),
        ("print('x'); sys.exit('torch.OutOfMemoryError: CUDA out of memory. Tried')", "out of memory: torch.OutOfMem"),
        ("import os; print('last words', flush=True); os.kill(os.getpid(), 9)", "ended by SIGKILL: last words"),
        ("import time; time.sleep(60)", "no result within 1 s"),
        ("pass", "nothing in its log"),
    ],
)
def test_a_child_that_fails_is_a_row_with_the_reason(code: str, reason: str, tmp_path: Path):
    begun = 'progress.write(\'{"phase": "step 2 of 3", "at": 4.5}\\n{"partial": {"a": 1}}\\n\')'
    child = child_of(f"{begun}\n{code}", tmp_path)
    child.go()
    found = child.outcome(1 if "sleep" in code else 20)
    assert found["status"] == "failed" and found["phase"] == "step 2 of 3" and found["a"] == 1
    assert found["reason"].startswith(reason) and found["phases"] == {"step 2 of 3": 4.5}


def test_a_child_that_takes_too_long_says_when_its_phases_began_and_where_it_was(tmp_path: Path):
    code = """
import faulthandler, json, pathlib, signal, sys, threading, time
from benchmarks.harness.worker import Phases, Progress
from wishbone.phases import listening, phase

def waits():
    time.sleep(60)

faulthandler.register(signal.SIGUSR1, all_threads=True)
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
with listening(Phases(Progress(pathlib.Path(sys.argv[4])))), phase("profiling"):
    pass
with listening(Phases(Progress(pathlib.Path(sys.argv[4])))), phase("recording", 24) as counting:
    counting.to(7)
    waits()
"""
    child = child_of(code, tmp_path)
    child.go()
    found = child.outcome(3)
    assert list(found["phases"]) == ["profiling", "after profiling", "recording", "recording, 7 of 24"]
    assert found["was_at"][0].endswith(" waits")


def test_a_search_whose_process_ends_goes_on_in_a_new_one(tmp_path: Path):
    # the stand-in for a worker dies of memory once, and finds what it was to go on with the second time
    code = """
import json, os, sys
request = json.load(open(sys.argv[3]))
sys.stdin.readline()
with open(sys.argv[4], "a") as progress:
    if "lower" in request:
        progress.write(json.dumps({"result": {"tokens": request["lower"], "too_long": request["upper"]}}))
        sys.exit()
    progress.write(json.dumps({"partial": {"again": {"lower": 5, "upper": 7}}}))
os.kill(os.getpid(), 9)
"""
    python = interpreter_that_runs(code, tmp_path)
    parser = argparse.ArgumentParser()
    jobs.add_options(parser)
    out = tmp_path / "out.json"
    options = parser.parse_args(["--python", f"wishbone={python}", "--out", str(out), "--commit", "c", "--ahead"])
    planned = [jobs.Job("longest", f"wishbone-{form}", "tiny", "1 GiB") for form in ("f32", "bf16")]
    results = jobs.run_jobs(planned, options)
    assert [(entry["status"], entry["tokens"], entry["too_long"]) for entry in results.rows] == [("ok", 5, 7)] * 2
    assert json.loads(out.read_text())["calls"][0]["commit"] == "c"
    late = parser.parse_args(["--python", f"wishbone={python}", "--minutes", "0.5"])
    short = jobs.Job("longest", "wishbone-f32", "tiny", "2 GiB", expected_seconds=5)
    assert [entry["case"] for entry in jobs.run_jobs([*planned, short], late).rows] == ["2 GiB"]
