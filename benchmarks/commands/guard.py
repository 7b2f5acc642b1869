"""The guard on real runs: SmolLM2-135M-Instruct, what collapses and what trains through.

    python -m benchmarks guard [CASE ...] [--processes 12] [--model FILE.gguf] [--pairs FILE] [--seeds 10]
        [--minutes 4] --out benchmarks/results/guard-smollm2-h200.json

Each run is `wishbone train` with an adapter of rank 16 in bfloat16, on a CUDA device where there is one, in a process
of its own; several run at the same time. Its measurements, alarms, time and the guard's share of it are added to the
file as soon as it ends, with the command, the versions and the commit. `CASES` says what is run; cases on `--pairs`
are left out without it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.harness.children import Child
from benchmarks.harness.results import Results, Row

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "plain-answers"
HELD_OUT = 8
KEY = {"kind": "guard", "size": "135m", "system": "wishbone-bf16"}


@dataclass(frozen=True)
class Case:
    """Settings of some runs that differ in their seed.

    Attributes:
        action: what the guard does.
        rate: peak learning rate.
        steps: optimizer steps.
        loss: one loss or several.
        guard_steps: steps between two measurements; None: as the guard's share of the time allows.
        batch: pairs in a step.
        seeds: how many runs; None: as many as asked for.
        given: whether they train on `--pairs` instead of the example.
        max_length: tokens of a sequence.
    """

    action: str
    rate: float
    steps: int
    loss: str = "sigmoid"
    guard_steps: int | None = 20
    batch: int = 8
    seeds: int | None = 1
    given: bool = False
    max_length: int = 256


CASES = {
    "2e-4": Case("report", 2e-4, 400),
    "2e-4, stop": Case("stop", 2e-4, 400),
    "2e-4, other pairs": Case("report", 2e-4, 400, batch=4, given=True, max_length=1024),
    "2e-4, other pairs, stop": Case("stop", 2e-4, 400, batch=4, given=True, max_length=1024),
    "1e-3, stop": Case("stop", 1e-3, 60, guard_steps=4, batch=2),
    "share of time": Case("report", 5e-6, 600, guard_steps=None),
    "healthy": Case("stop", 5e-6, 200, seeds=None),
    "healthy with an anchor": Case("stop", 2e-5, 200, loss="sigmoid,sft", seeds=3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {'; '.join(CASES)}. All without one.")
    parser.add_argument("--processes", type=int, default=1, help="runs at the same time")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="its GGUF file where there is no network")
    parser.add_argument("--pairs", type=Path, help="other preference pairs, in any form that is read")
    parser.add_argument("--seeds", type=int, default=10, help="healthy runs")
    parser.add_argument("--steps", type=int, help="of every run, to try the command")
    parser.add_argument("--minutes", type=float, default=600, help="kill what is not done then, and say so")
    parser.add_argument("--commit", help="commit of this code, where git cannot tell")
    parser.add_argument("--again", action="store_true", help="run again what the file already has")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    if unknown := set(asked.cases) - set(CASES):
        parser.error(f"there is no case {', '.join(sorted(unknown))}")
    results = Results.read(asked.out) if asked.out.exists() else Results()
    results.begin_call(asked.commit)
    end = time.monotonic() + 60 * asked.minutes
    with (
        tempfile.TemporaryDirectory(prefix="wishbone-guard-") as folder,
        ThreadPoolExecutor(asked.processes) as pool,
    ):
        wanted = [row for row in _requests(asked) if asked.again or not results.has(row)]
        for done in as_completed([pool.submit(_run, request, Path(folder), end) for request in wanted]):
            row = done.result()
            results.add(row)
            results.write(asked.out)
            print(_line(row), flush=True)


def _requests(asked: argparse.Namespace) -> Iterator[Row]:
    for name, case in CASES.items():
        if (asked.cases and name not in asked.cases) or (case.given and asked.pairs is None):
            continue
        settings = asdict(case) | ({"steps": asked.steps} if asked.steps else {})
        for seed in range(1, (case.seeds or asked.seeds) + 1):
            yield KEY | {
                "case": f"{name}, seed {seed}",
                **settings,
                "seed": seed,
                "model": os.path.abspath(asked.model) if os.path.exists(asked.model) else asked.model,
                "train": str((asked.pairs if case.given else EXAMPLE / "train.jsonl").resolve()),
                "at_the_same_time": asked.processes,
            }


def _run(request: Row, folder: Path, end: float) -> Row:
    row = dict(request)
    limit = end - time.monotonic()
    if limit <= 0:
        return _shown(row | {"status": "failed", "reason": "the time of this call was over before it began"})
    threads = max(1, (os.cpu_count() or 1) // row["at_the_same_time"])
    name = request["case"].translate(str.maketrans(" ,", "--"))
    process = Child(request, name, folder, environment={"OMP_NUM_THREADS": str(threads)})
    process.go()
    return _shown(row | process.outcome(limit))


def _shown(row: Row) -> Row:
    """Names of files instead of paths, and no settings that only this command reads."""
    kept = {name: value for name, value in row.items() if name not in ("seeds", "given")}
    return kept | {"train": Path(row["train"]).name, "model": Path(row["model"]).name}


def _line(row: Row) -> str:
    if row["status"] != "ok":
        return f"{row['case']}: FAILED, {row['reason']} (at: {row.get('phase', 'the start')})"
    guard, last = row["guard"], row["measured"][-1]
    alarms = ", ".join(f"{alarm['sign']} at {alarm['step']}" for alarm in guard["alarms"]) or "no alarm"
    return (
        f"{row['case']}: {row['steps_done']} steps in {row['train_seconds']} s, {guard['measurements']} measurements, "
        f"share {guard['share']}, {alarms}, restored {guard['restored_step']}; drift {last['chosen_drift']:.3f}, "
        f"{last['rejected_drift']:.3f}, margin {last['margin']:.2f} ({row['seconds']:.0f} s)"
    )


def measure(request: Row, progress: Any) -> Row:
    """Train as asked for and return what came of it."""
    from wishbone.config.schema import RunConfig
    from wishbone.run.run import train

    scratch = Path(request["scratch"])
    progress.phase("training")
    run = train(
        RunConfig.model_validate(
            {
                "model": {"name": request["model"], "dtype": "bfloat16"},
                "data": {"train": request["train"], "max_length": request["max_length"], **_heldout(request, scratch)},
                "preference": {"loss": request["loss"].split(",")},
                "training": {
                    "learning_rate": request["rate"],
                    "max_steps": request["steps"],
                    "batch_size": request["batch"],
                    "gradient_accumulation": 1,
                    "seed": request["seed"],
                    "token_budget": 8192,  # not by the memory that is free: others run beside
                    "guard": request["action"],
                    "guard_steps": request["guard_steps"],
                    "eval_steps": 10**6,
                    "save_steps": 10**6,
                },
                "output": {"dir": str(scratch / "run")},
            }
        )
    )
    summary = json.loads((run / "summary.json").read_text())
    rows = [json.loads(line) for line in (run / "guard.jsonl").read_text().splitlines()]
    return {
        "steps_done": summary["steps"],
        "train_seconds": summary["train_seconds"],
        "device": summary["device"],
        "heldout_before": summary["heldout_before"],
        "heldout_after": summary["heldout_after"],
        "guard": summary["guard"],
        "measured": [row for row in rows if row["kind"] == "measurement"],
    }


def _heldout(request: Row, scratch: Path) -> Row:
    """Settings of the held-out pairs: a part of the given ones, or the first of the example's."""
    if request["given"]:
        return {"eval_fraction": 0.1, "invalid_rows": "drop"}
    heldout = scratch / "heldout.jsonl"
    with (EXAMPLE / "heldout.jsonl").open(encoding="utf-8") as lines:
        heldout.write_text("".join(islice(lines, HELD_OUT)), encoding="utf-8")
    return {"eval": str(heldout)}


if __name__ == "__main__":
    main()
