"""One pass for policy and reference beside two: steps of both in turn, in one process on one model.

    two passes          the reference runs first, then the policy
    one pass            both at once, as a run does it by itself
    one pass, carried   only with --carried: what the two differ by in a tensor of its own, where a run rounds it
    one pass, rounded   the other way round

The adapter is not new: its second factors get small random values. Those of a new one are zero, so the two would not
differ, and a GPU multiplies zeros faster.

Every round runs each step's pairs in every way, forward and backward, the ways in turn. Speeds are those of the median
and of the best time of each step's pairs; a host or a GPU that others disturb shows in the difference. With --recorded
all rows are replayed from CUDA graphs.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from itertools import islice
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.harness import jobs
from benchmarks.harness.jobs import Job, run_jobs
from benchmarks.harness.moved_adapter import move_adapter
from benchmarks.harness.results import Row
from benchmarks.harness.systems import parse_system
from benchmarks.harness.workloads import SIZES, Case, draw_lengths, texts
from benchmarks.rendering.tables import show

if TYPE_CHECKING:
    from benchmarks.harness.worker import Progress

SYSTEMS = "wishbone-bf16,wishbone-fp8:in_place=True,wishbone-nf4:in_place=True"
TWO, ONE, OTHER = "two passes", "one pass", "one pass, {}"


def measure(request: dict[str, Any], progress: Progress) -> Row:
    """Run the steps in all ways (in the child)."""
    from benchmarks.harness.clock import now
    from benchmarks.harness.loading import Origin, device_of, load, trainer_for
    from wishbone.engine.step import PreferenceStep
    from wishbone.preference.metrics import PairMetrics
    from wishbone.reference.reference import AdapterDisabled
    from wishbone.trainer.start_check import uncached

    system, case = parse_system(request["system"]), Case.parse(request["workload"])
    steps, size = request["steps"], SIZES[request["size"]]
    device = device_of(system)
    progress.phase("loading the model")
    loaded = load(system, Origin(request["size"], request.get("directory")), device)
    progress.phase("preparing the trainer")
    trainer = trainer_for(
        system,
        loaded,
        device,
        request["scratch"],
        texts(draw_lengths(case.workload, case.pairs_a_step * steps), size.vocabulary),
        per_device_train_batch_size=case.pairs_a_step,
        max_steps=steps,
    )
    reference = uncached(trainer.preference_step)
    if not isinstance(reference, AdapterDisabled) or not reference.in_lockstep:
        raise SystemExit("policy and reference of this system do not run in one pass here")
    move_adapter(trainer.model)
    step = PreferenceStep(trainer.preference_step.policy, reference, trainer.preference_step.objective)
    groups = [batch["pairs"] for batch in islice(trainer.get_train_dataloader(), steps)]
    carry = step.policy.carry
    other = OTHER.format("rounded" if carry else "carried")
    ways = [TWO, ONE, *([other] if request["carried"] else [])]

    def switch(way: str) -> None:
        reference.in_lockstep = way != TWO
        step.policy.carry = carry is not (way == other)

    def run(pairs: Any, execution: Any) -> float:
        loss = step.backward([pairs], PairMetrics(1.0), execution)
        launched = time.perf_counter()
        for parameter in step.policy.model.parameters():
            parameter.grad = None
        measured["losses"].append(loss)
        return launched

    measured: dict[str, Any] = {"losses": []}
    found: dict[str, Row] = {}
    executions = {}
    for way in ways:
        progress.phase(f"{way}, for the first time")
        switch(way)
        measured["losses"] = []
        executions[way] = _recorded(step, groups, trainer.execution) if request["recorded"] else trainer.execution
        _reset_peak(device)
        for pairs in groups:
            run(pairs, executions[way])
        found[way] = {
            "losses": [float(loss) for loss in measured["losses"][-len(groups) :]],
            **_peak(device),
            "seconds": [[] for _ in groups],
            "launched": [],
        }
    for number in range(request["rounds"]):
        progress.phase(f"round {number + 1} of {request['rounds']}")
        for index, pairs in enumerate(groups):
            turn = (number + index) % len(ways)
            for way in ways[turn:] + ways[:turn]:
                switch(way)
                begun = now()
                launched = run(pairs, executions[way])
                ended = now()
                found[way]["seconds"][index].append(round(ended - begun, 4))
                found[way]["launched"].append((launched - begun) / (ended - begun))
        progress.write(partial=_figures(found, case.pairs_a_step))
    return _figures(found, case.pairs_a_step)


def _recorded(step: Any, groups: Any, execution: Any) -> Any:
    """Return the execution with CUDA graphs of these steps' rows."""
    from wishbone.engine.probe import RowProbe
    from wishbone.policy.cuda_graphs import CudaGraphs

    graphs = CudaGraphs(step.policy.model, step.policy.backbone)
    replaying = replace(execution, graphs=graphs)
    longest = max(pair.row_tokens for pairs in groups for pair in pairs)
    trial = RowProbe(step, longest)
    rows = {step.policy.collate(pairs).tokens for pairs in groups}
    with graphs.recording():
        for tokens in sorted(rows, reverse=True):
            trial.run(tokens, replaying)
    return replaying


def _reset_peak(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: Any) -> Row:
    import torch

    return {"peak_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 2)} if device.type == "cuda" else {}


def _figures(found: dict[str, Row], pairs: int) -> Row:
    """Return pairs a second of each way, and how they compare with two passes."""
    ways: dict[str, Row] = {}
    for way, one in found.items():
        every = [times for times in one["seconds"] if times]
        speeds = {"": pairs * len(every) / sum(map(median, every)), "_best": pairs * len(every) / sum(map(min, every))}
        own = {f"pairs_per_s{kind}": round(speed, 3) for kind, speed in speeds.items()}
        ways[way] = {**own, "host_share": round(median(one["launched"]), 3), **one}
        del ways[way]["launched"]
        for kind in ("", "_best"):
            ways[way][f"factor{kind}"] = round(own[f"pairs_per_s{kind}"] / ways[TWO][f"pairs_per_s{kind}"], 3)
    return {"pairs_per_s": ways[ONE]["pairs_per_s"], "ways": ways}


def job(
    system: str, case: str, size: str, *, recorded: bool, carried: bool, steps: int, rounds: int, limit_seconds: float
) -> Job:
    """Return the job of one row; ValueError for a system or case that does not exist."""
    parse_system(system)
    settings = {"workload": str(Case.parse(case)), "recorded": recorded, "carried": carried}
    name = f"{case}, recorded" if recorded else case
    settings |= {"steps": steps, "rounds": rounds}
    return Job("one_pass", system, size, name, settings, limit_seconds=limit_seconds, expected_seconds=60)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks one-pass", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--systems", default=SYSTEMS, help="Wishbone's systems, by commas")
    parser.add_argument("--case", default="ultrafeedback:8", help="WORKLOAD[:BATCH[xACCUMULATION]]")
    parser.add_argument("--size", choices=SIZES, default="8b", help="shape of the random model")
    parser.add_argument("--recorded", action="store_true", help="replay CUDA graphs instead of running rows")
    parser.add_argument("--carried", action="store_true", help="a third way: the difference carried, or not")
    parser.add_argument("--steps", type=jobs.one_or_more, default=4, help="different steps, each with pairs of its own")
    parser.add_argument("--rounds", type=jobs.one_or_more, default=5, help="times that each is run in each way")
    parser.add_argument("--limit-seconds", type=float, default=300, help="time for one row")
    jobs.add_options(parser)
    options = parser.parse_args()
    asked = {name: getattr(options, name) for name in ("recorded", "carried", "steps", "rounds", "limit_seconds")}
    try:
        planned = [job(system, options.case, options.size, **asked) for system in options.systems.split(",")]
    except ValueError as error:
        parser.error(str(error))
    show(run_jobs(planned, options), "one_pass")
