"""Whole training steps of another checkout's code beside those of this one, in turns on one device.

    python -m benchmarks before-and-after --before ../wishbone-then [--before-commit 2aca559]
    python -m benchmarks before-and-after --before . --before-options cuda_graphs=off

Two processes for each system, one imports `wishbone` from the other checkout, one from this; each proves which by the
file and by a hash of the code. Both train on the same pairs in the same order through the public trainer, with an
adapter that has moved (those of a new one are zero, and a GPU multiplies zeros faster), and both are in memory at once.
They take turns: model, trainer and first steps, then a few steps each, before and after, until the end. With options of
the system for the other, the two may differ by more than code, or, where both are this checkout, by the options alone.

Factors are those of the time of the same steps: after the first turn, and from step 5 on.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.console import Console

from benchmarks.harness import jobs
from benchmarks.harness.children import Child
from benchmarks.harness.jobs import Job, Line, begun_call, one_or_more
from benchmarks.harness.results import ROOT, Results, Row, current_commit, line_of
from benchmarks.harness.systems import parse_system
from benchmarks.harness.workloads import SIZES, Case
from benchmarks.rendering.tables import show

if TYPE_CHECKING:
    from benchmarks.harness.worker import Progress

BEFORE, AFTER = "before", "after"
SYSTEMS = "wishbone-bf16=ultrafeedback:8,wishbone-fp8=ultrafeedback:8,wishbone-nf4-small=ultrafeedback:1,\
wishbone-nf4=ultrafeedback:8"
LOOKED_AT = 2
"""Further steps with --look."""
FIRST_STEPS = 4
"""Steps that warm up before "from step 5 on"."""


def measure(request: dict[str, Any], progress: Progress) -> Row:
    """Train in turns with the code that this process has imported (in the child)."""
    from benchmarks.harness.imported import imported_package
    from benchmarks.harness.loading import Loaded, Origin, load
    from benchmarks.harness.moved_adapter import move_adapter
    from benchmarks.harness.step_work import StepWork
    from benchmarks.harness.timed_training import timed_training
    from benchmarks.harness.turn_callback import Turns

    system, size = parse_system(request["system"]), SIZES[request["size"]]
    package = imported_package(Path(request["source"]))
    progress.write(partial={"package": package})

    def loaded(device: Any) -> Loaded:
        return load(system, Origin(request["size"], request.get("directory")), device)

    callbacks: list[Any] = [Turns(request["warm_up"], request["turn"], progress, move_adapter)]
    steps = request["warm_up"] + request["timed"]
    if request["look"]:
        request = request | {"timed": request["timed"] + LOOKED_AT}
        callbacks.append(StepWork(steps + LOOKED_AT))
    trained = timed_training(
        system, loaded, request, progress, Case.parse(request["workload"]), size.vocabulary, callbacks
    )
    row = trained.row | {"package": package, "step_seconds": trained.row["step_seconds"][:steps]}
    del row["pairs_per_s_with_data"]  # it would count the other's turns
    return row | ({"looked_at": callbacks[-1].found} if request["look"] else {})


def compared(ways: dict[str, Row], warm_up: int, pairs: int) -> Row:
    """Return the row of two processes' results: the rate of this checkout and its factors over the other's.

    Args:
        ways: results of `BEFORE` and `AFTER`.
        warm_up: steps of the first turn.
        pairs: of each step.
    """
    failed = next((way for way, row in ways.items() if row["status"] != "ok"), None)
    if failed:
        told: Row = {name: ways[failed][name] for name in ("reason", "phase") if name in ways[failed]}
        return {"status": "failed", "way": failed, **told, "ways": ways}
    seconds = {way: row["step_seconds"] for way, row in ways.items()}
    row: Row = {"status": "ok", "pairs_per_s": ways[AFTER]["pairs_per_s"], "ways": ways}
    for name, first in (("", warm_up), ("_from_step_5", FIRST_STEPS)):
        before, after = seconds[BEFORE][first:], seconds[AFTER][first:]
        if not after:
            continue
        row[f"factor{name}"] = round(sum(before) / sum(after), 3)
        row[f"median_factor{name}"] = round(median(a / b for a, b in zip(before, after, strict=True)), 3)
        for way, steps in ((BEFORE, before), (AFTER, after)):
            ways[way][f"pairs_per_s{name}"] = round(pairs * len(steps) / sum(steps), 3)
    return row


def job(
    system: str, case: str, size: str, *, warm_up: int, turn: int, rounds: int, look: bool, limit_seconds: float
) -> Job:
    """Return the job of one row; ValueError for a system or case that does not exist."""
    if parse_system(system).family != "wishbone":
        raise ValueError(f"{system} is not Wishbone's: `python -m benchmarks throughput` measures it")
    settings = {"workload": str(Case.parse(case)), "warm_up": warm_up, "turn": turn, "timed": turn * rounds}
    settings["look"] = look
    return Job("before_and_after", system, size, case, settings, limit_seconds=limit_seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks before-and-after",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--before", type=Path, required=True, help="the other checkout: a directory with src/wishbone")
    parser.add_argument("--before-commit", help="commit of its code, where git cannot tell")
    parser.add_argument("--systems", default=SYSTEMS, help="SYSTEM=WORKLOAD[:BATCH[xACCUMULATION]], by commas")
    parser.add_argument(
        "--before-options",
        default="",
        metavar="OPTION=VALUE[,...]",
        help="options of the systems in the other checkout",
    )
    parser.add_argument("--size", choices=SIZES, default="8b", help="shape of the random model")
    parser.add_argument("--warm-up", type=one_or_more, default=FIRST_STEPS, help="steps of the first turn, not timed")
    parser.add_argument("--turn", type=one_or_more, default=4, help="steps of each further turn")
    parser.add_argument("--rounds", type=one_or_more, default=4, help="further turns of each")
    parser.add_argument("--look", action="store_true", help="two more steps of each: where the host is, and kernels")
    parser.add_argument("--limit-seconds", type=float, default=300, help="time for one row")
    jobs.add_options(parser)
    options = parser.parse_args()
    before: Path = options.before.resolve()
    if not (before / "src" / "wishbone" / "__init__.py").exists():
        parser.error(f"{options.before} has no src/wishbone")
    commits = {BEFORE: options.before_commit or current_commit(before), AFTER: options.commit or current_commit()}
    if unknown := [way for way, commit in commits.items() if commit is None]:
        parser.error(f"git does not know the commit of the code {unknown[0]}: give --before-commit or --commit")
    asked = {name: getattr(options, name) for name in ("warm_up", "turn", "rounds", "look", "limit_seconds")}
    pairs = [entry.rpartition("=")[::2] for entry in options.systems.split(",")]
    try:
        planned = [job(system, case, options.size, **asked) for system, case in pairs]
        for system, _ in pairs:
            parse_system(with_options(system, options.before_options))
    except ValueError as error:
        parser.error(str(error))
    sources = {BEFORE: before / "src", AFTER: ROOT / "src"}
    show(_run(planned, options, sources, commits), "before_and_after")


def _run(planned: list[Job], options: argparse.Namespace, sources: dict[str, Path], commits: Row) -> Results:
    """Run the jobs one after the other, each as two processes; with --ahead the next two import meanwhile."""
    console = Console(stderr=True)
    with begun_call(options, console) as (results, line):
        start = partial(_start, line, sources, options.before_options)
        pending = [one for one in planned if options.again or not results.has(one.key)]
        ahead: dict[str, Child] = {}
        for number, one in enumerate(pending):
            if not line.write_model(one):
                results.add(one.key | {"status": "failed", "reason": "its random model could not be written"})
                continue
            children = ahead or start(one)
            ahead = start(pending[number + 1]) if options.ahead and number + 1 < len(pending) else {}
            found = line.in_turns(children, one.limit_seconds)
            for way, row in found.items():
                row["commit"] = commits[way]
                console.print(f"{way}: {row.get('package', 'nothing imported')}, {commits[way]}", soft_wrap=True)
            case = Case.parse(one.case)
            results.add(one.key | compared(found, one.settings["warm_up"], case.pairs_a_step))
            console.print(line_of(results.rows[-1]), soft_wrap=True)
            if options.out:
                results.write(options.out)
    return results


def _start(line: Line, sources: dict[str, Path], before_options: str, one: Job) -> dict[str, Child]:
    systems = {BEFORE: with_options(one.system, before_options), AFTER: one.system}
    return {
        way: line.start(one, {"way": way, "source": str(source), "system": systems[way]}, source=source)
        for way, source in sources.items()
    }


def with_options(system: str | None, options: str) -> str:
    """Return the name of a system with further options, which are separated by commas."""
    return ":".join([system or "", *filter(None, options.split(","))])
