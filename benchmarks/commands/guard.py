"""The guard on real runs: SmolLM2-135M-Instruct on a CPU, what collapses and what trains through.

    python -m benchmarks guard --case healthy --rate 5e-6 --seeds 1,2,3 --steps 16 [--loss sigmoid,sft]
        [--action stop] [--guard-steps 4] [--train FILE --heldout FILE] --out benchmarks/results/guard-smollm2.json

Each run is `wishbone train` with the model that comes with Wishbone, an adapter of rank 16 and the pairs of
`examples/plain-answers` (8 held out), or others. Its measurements, its alarms, its time and its guard's time are added
to the file, with the command, the versions and the commit.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from itertools import islice
from pathlib import Path

from benchmarks.harness.results import Results, Row, current_commit
from wishbone.config.schema import RunConfig

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "plain-answers"
HELD_OUT = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", required=True, help="Name of these runs in the file.")
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--loss", default="sigmoid")
    parser.add_argument("--action", default="report")
    parser.add_argument("--guard-steps", type=int)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--train", type=Path, default=EXAMPLE / "train.jsonl")
    parser.add_argument("--heldout", type=Path, default=EXAMPLE / "heldout.jsonl")
    parser.add_argument("--out", type=Path, required=True)
    request = parser.parse_args()
    results = Results.read(request.out) if request.out.exists() else Results()
    results.begin_call(current_commit())
    for seed in map(int, request.seeds.split(",")):
        row = _run(request, seed)
        results.add(row)
        results.write(request.out)
        guard = row["guard"]
        print(row["case"], guard["measurements"], [alarm["sign"] for alarm in guard["alarms"]], row["seconds"])


def _run(request: argparse.Namespace, seed: int) -> Row:
    from wishbone.run.run import train

    with tempfile.TemporaryDirectory() as scratch:
        heldout = Path(scratch) / "heldout.jsonl"
        with request.heldout.open(encoding="utf-8") as lines:
            heldout.write_text("".join(islice(lines, HELD_OUT)), encoding="utf-8")
        config = RunConfig.model_validate(
            {
                "model": {"name": "smollm2-135m-instruct", "dtype": "bfloat16"},
                "data": {"train": str(request.train), "eval": str(heldout), "max_length": request.max_length},
                "preference": {"loss": request.loss.split(",")},
                "training": {
                    "learning_rate": request.rate,
                    "max_steps": request.steps,
                    "batch_size": request.batch,
                    "gradient_accumulation": 1,
                    "seed": seed,
                    "guard": request.action,
                    "guard_steps": request.guard_steps,
                    "eval_steps": 10**6,
                    "save_steps": 10**6,
                },
                "output": {"dir": str(Path(scratch) / "run")},
            }
        )
        began = time.perf_counter()
        run = train(config)
        seconds = time.perf_counter() - began
        summary = json.loads((run / "summary.json").read_text())
        versions = json.loads((run / "environment.json").read_text())["libraries"]
        rows = [json.loads(line) for line in (run / "guard.jsonl").read_text().splitlines()]
    settings = ("rate", "loss", "steps", "batch", "action", "guard_steps", "max_length")
    return {
        "kind": "guard",
        "size": "135m",
        "system": "wishbone-bf16",
        "case": f"{request.case}, seed {seed}",
        "status": "ok",
        **{name: getattr(request, name) for name in settings},
        "seed": seed,
        "train": request.train.name,
        "seconds": round(seconds, 1),
        "steps_done": summary["steps"],
        "train_seconds": summary["train_seconds"],
        "heldout_before": summary["heldout_before"],
        "heldout_after": summary["heldout_after"],
        "guard": summary["guard"],
        "measured": [row for row in rows if row["kind"] == "measurement"],
        "versions": versions,
    }


if __name__ == "__main__":
    main()
