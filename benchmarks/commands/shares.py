"""How evenly the pairs of a step divide over processes, and what that leaves of more GPUs: no GPU is needed.

    python -m benchmarks shares --processes 2,4,8 --measured benchmarks/results/scaling-h200.json --out shares.json

The code that divides the steps of training (`engine/sharing.py`) divides steps of drawn lengths. The imbalance is how
many more tokens than the mean the fullest process has; rows give its mean over steps and the worst step. With measured
rows of one and of two GPUs (s1 and s2 seconds a step of as many pairs), a row extrapolates N GPUs:

    rest   what two GPUs took beyond an even division with their imbalance i2:   s2 - s1 / 2 (1 + i2)
    s_N    s1 / N (1 + i_N) + rest 2 (N - 1) / N

The last factor is how the bytes of a ring's reduction grow for each GPU. It says nothing of links between machines.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean

from benchmarks.harness.results import Results, Row
from benchmarks.harness.workloads import WORKLOADS, Lengths, draw_lengths
from wishbone.data.batch import TokenizedPair
from wishbone.engine.sharing import share_of


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks shares", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", default="2,4,8", help="numbers of processes, by commas")
    parser.add_argument("--workload", choices=WORKLOADS, default="ultrafeedback", help="lengths of the pairs")
    parser.add_argument("--pairs", type=int, default=32, help="pairs in a step")
    parser.add_argument("--steps", type=int, default=200, help="steps that are divided")
    parser.add_argument("--measured", type=Path, help="rows of `benchmarks scaling` from which to extrapolate")
    parser.add_argument("--out", type=Path, help="file of results; an existing one is continued")
    parser.add_argument("--commit", help="commit of this code, where git cannot tell")
    options = parser.parse_args()
    try:
        counts = [int(text) for text in options.processes.split(",")]
    except ValueError as error:
        parser.error(str(error))
    if min(*counts, options.pairs, options.steps) < 1:
        parser.error("processes, pairs and steps must be 1 or more")
    results = Results.read(options.out) if options.out and options.out.exists() else Results()
    results.begin_call(options.commit)
    measured = json.loads(options.measured.read_text(encoding="utf-8"))["results"] if options.measured else []
    drawn = draw_lengths(options.workload, options.pairs * options.steps)
    steps = [drawn[first : first + options.pairs] for first in range(0, len(drawn), options.pairs)]
    uneven = {count: [imbalance(step, count) for step in steps] for count in {2, *counts}}
    for count in counts:
        row: Row = {"kind": "shares", "size": None, "system": "wishbone"}
        row["case"] = f"{options.workload}:{options.pairs} x{count}"
        row |= {"imbalance": round(mean(uneven[count]), 4), "worst": round(max(uneven[count]), 4), "status": "ok"}
        row |= {"times_one": extrapolated(measured, options.pairs, count, mean(uneven[count]))} if measured else {}
        print(json.dumps(row), flush=True)
        results.add(row)
    if options.out:
        results.write(options.out)


def imbalance(step: list[Lengths], processes: int) -> float:
    """Return how many more tokens than the mean the fullest process has of a step, as a share of the mean."""
    pairs = [_pair(lengths) for lengths in step]
    shares = [share_of([pairs], whole_groups=False, processes=processes, process=rank) for rank in range(processes)]
    tokens = [sum(pairs[index].row_tokens for index in share.indices or ()) for share in shares]
    return max(tokens) * processes / sum(tokens) - 1


def _pair(lengths: Lengths) -> TokenizedPair:
    """Return a pair of these lengths whose completions differ from their first token on."""
    start = [0] * lengths.prompt
    return TokenizedPair(start + [1] * lengths.chosen, start + [2] * lengths.rejected, lengths.prompt, lengths.prompt)


def extrapolated(measured: list[Row], pairs: int, processes: int, uneven: float) -> dict[str, float]:
    """Return how many times as fast as one GPU each system would be, where one and two GPUs were measured.

    Args:
        measured: rows of `benchmarks scaling`.
        pairs: of a step, as in the rows that count.
        processes: how many GPUs.
        uneven: their imbalance.
    """
    seconds = {(row["system"], row["case"]): row for row in measured if row["pairs"] == pairs}
    found = {}
    for (system, case), one in seconds.items():
        two = seconds.get((system, "strong x2"))
        if case != "strong x1" or two is None:
            continue
        rest = max(0.0, two["seconds"] - one["seconds"] / 2 * (1 + two["imbalance"]))
        growth = 2 * (processes - 1) / processes
        found[system] = round(one["seconds"] / (one["seconds"] / processes * (1 + uneven) + rest * growth), 2)
    return found


if __name__ == "__main__":
    main()
