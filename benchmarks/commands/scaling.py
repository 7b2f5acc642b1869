"""Steps on one and on several GPUs: pairs a second, imbalance, communication, and how they grow.

    python -m benchmarks scaling --processes 1,2 --cases bf16-strong,bf16-weak,fp8-strong,fp8-weak --out scaling.json

A case is WEIGHTS-HOW. Strong scaling has the same pairs in a step on any number of GPUs, weak scaling as many more as
there are GPUs. `sharded` divides a LoRA run's base over the GPUs (FSDP2), `full` trains all weights, divided. Processes
start as `wishbone train --gpus N` starts them, and measure cases one after the other, first those of undivided models.
Where they fail, others go on with the cases after that. The layers of a base in 16 bits that will be divided lie in the
memory of one until then, so that the whole of it need not fit one GPU. Each row says, as means over timed steps:

    seconds         from the first process's batch to the end of its optimizer step
    imbalance       how much longer the slowest process computes than the mean
    waiting         the share of a step in which the mean process waits for the slowest
    communication   the share of a step in which gradients are added up, after all have come

`--beside FILE` takes over rows that were measured elsewhere, so that one GPU can measure one precision and another one
another, at the same time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import jobs
from benchmarks.harness.results import Results, Row
from benchmarks.harness.systems import System
from benchmarks.harness.workloads import SIZES, draw_lengths, texts, useful_flop

WARM_UP, TIMED, BATCH, PAIRS = 2, 3, 8, 32
HOW = ("strong", "weak", "sharded", "full")
DIVIDED = ("sharded", "full")
"""Those of which FSDP2 divides the weights."""
SIGNALLED = 128
"""Exit statuses above are those of signals."""
WEIGHTS = ("f32", "bf16", "fp8", "nf4")


def parse_case(text: str) -> tuple[str, str]:
    """Return precision and kind of a case.

    Raises:
        ValueError: it is no such case.
    """
    weights, _, how = text.partition("-")
    if weights not in WEIGHTS or how not in HOW or (how == "full" and weights in ("fp8", "nf4")):
        raise ValueError(f"case {text!r}: give WEIGHTS-HOW, such as bf16-strong, with {WEIGHTS} and {HOW}")
    return weights, how


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", default="1,2", help="numbers of processes, by commas")
    parser.add_argument("--cases", default="bf16-strong,bf16-weak,fp8-strong,fp8-weak", help="cases, by commas")
    parser.add_argument("--size", choices=SIZES, default="8b", help="shape of the random model")
    parser.add_argument("--workload", default="ultrafeedback", help="lengths of the pairs")
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"pairs in a step of one GPU, a multiple of {BATCH}")
    parser.add_argument("--token-budget", type=int, help="tokens of a row; without it as trainers choose")
    jobs.add_step_options(parser, WARM_UP, TIMED)
    parser.add_argument("--out", type=Path, help="file of results; an existing one is continued")
    parser.add_argument("--beside", type=Path, action="append", default=[], help="take over the rows of this file")
    parser.add_argument("--commit", help="commit of this code, where git cannot tell")
    parser.add_argument("--write-rows", type=Path, help=argparse.SUPPRESS)  # in the processes that measure
    options = parser.parse_args()
    try:
        cases = [(text, *parse_case(text)) for text in options.cases.split(",")]
        counts = [int(text) for text in options.processes.split(",")]
    except ValueError as error:
        parser.error(str(error))
    if options.pairs % BATCH or options.pairs < 1 or min(counts) < 1:
        parser.error(f"processes must be 1 or more, and pairs a multiple of {BATCH}")
    if options.write_rows:
        _measure_all(cases, options)
        return
    from wishbone.run.launch import launch

    before = [options.out] if options.out and options.out.exists() else []
    results = Results.read(*before, *options.beside)
    results.begin_call(options.commit)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "rows.jsonl"
        for count in counts:
            for together in launches(cases):
                left = [text for text in together if count > 1 or not text.endswith("-weak")]
                while left:
                    own = ["--processes", str(count), "--cases", ",".join(left), "--write-rows", str(written)]
                    status = launch(["scaling", *sys.argv[1:], *own], processes=count, module="benchmarks")
                    rows = written.read_text(encoding="utf-8").splitlines() if written.exists() else []
                    written.unlink(missing_ok=True)
                    for row in rows:
                        results.add(_beside_one(json.loads(row), results))
                    if options.out:
                        results.write(options.out)
                    if status > SIGNALLED:
                        raise SystemExit(status)
                    if missing := left[len(rows) :]:
                        print(f"{missing[0]}: {count} processes ended with status {status}", file=sys.stderr)
                    left = missing[1:]


def launches(cases: list[tuple[str, str, str]]) -> list[list[str]]:
    """Return which cases processes measure one after the other: undivided models, then divided ones in new processes.

    transformers and accelerate keep for the rest of a process that a model was divided, and divide the next one, too.
    """
    whole = [text for text, _, how in cases if how not in DIVIDED]
    divided = [text for text, _, how in cases if how in DIVIDED]
    return [together for together in (whole, divided) if together]


def _beside_one(row: Row, results: Results) -> Row:
    """Add how many times as fast as one process a row is, where that was measured."""
    kind = row["case"].partition(" ")[0]
    one = results.find("scaling", row["size"], row["system"], f"{kind} x1")
    if one is None and kind == "weak":  # with one process, weak and strong are the same
        one = results.find("scaling", row["size"], row["system"], "strong x1")
    return row if one is None else row | {"times_one": round(row["pairs_per_s"] / one["pairs_per_s"], 3)}


def _measure_all(cases: list[tuple[str, str, str]], options: argparse.Namespace) -> None:
    """Measure the cases in this process, one of several; the first one writes rows."""
    from benchmarks.harness.loading import import_libraries

    import_libraries(System("wishbone", "bf16"))
    import torch

    count, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    for text, weights, how in cases:
        row = _measure(weights, how, count, options)
        if rank == 0:
            row = {
                "kind": "scaling",
                "size": options.size,
                "system": f"wishbone-{weights}",
                "case": f"{how} x{count}" + (f" rows of {options.token_budget}" if options.token_budget else ""),
            } | row
            print(json.dumps({"case": text, "processes": count} | row), flush=True)
            with options.write_rows.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _measure(weights: str, how: str, count: int, options: argparse.Namespace) -> Row:
    """Train and return a row, the same in every process."""
    import gc

    import torch

    from benchmarks.harness.loading import Origin, load, trainer_for, versions
    from wishbone.engine import distributed
    from wishbone.model.device import choose_device
    from wishbone.trainer import step_loop

    gc.collect()
    device, size = choose_device(None), SIZES[options.size]
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    system = System("wishbone", weights, in_place=True)  # type: ignore[arg-type]
    pairs = options.pairs * (1 if how == "strong" else count)
    steps = options.warm_up + options.timed
    lengths = draw_lengths(options.workload, pairs * steps)
    one_layer = how == "sharded" and count > 1 and weights in ("f32", "bf16")
    loaded = load(system, Origin(options.size, None, one_layer), device)
    settings: dict[str, Any] = {} if options.token_budget is None else {"token_budget": options.token_budget}
    if how in DIVIDED:
        settings["fsdp"] = True
        settings["fsdp_config"] = {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
    if how == "full":
        loaded.options.clear()
    times = _Times()
    before = distributed.reduce_gradients
    step_loop.reduce_gradients = times.around(before)  # type: ignore[attr-defined]
    folder = tempfile.mkdtemp()
    try:
        trainer = trainer_for(
            system, loaded, device, folder, texts(lengths, size.vocabulary), callbacks=[times.callback()],
            per_device_train_batch_size=BATCH, gradient_accumulation_steps=pairs // BATCH, max_steps=steps,
            shared_steps=True, guard="off", reference_store="off", **settings,
        )  # fmt: skip
        trainer.train()
    finally:
        step_loop.reduce_gradients = before  # type: ignore[attr-defined]
    sharded = trainer.preference_step.policy.sharded if trainer.preference_step else None
    asked = how in DIVIDED
    if sharded is not None and ((sharded and not asked) or (asked and count > 1 and not sharded)):
        raise RuntimeError(f"case {weights}-{how} on {count} GPUs: the model's weights are divided: {sharded}")
    timed = times.steps[options.warm_up :]
    row = times.summary(timed, count, device) | {"status": "ok", "pairs": pairs, "sharded": sharded}
    row["pairs_per_s"] = round(pairs / row["seconds"], 3)
    row["useful_tflops"] = round(
        useful_flop(size, lengths[pairs * options.warm_up :]) / row["seconds"] / options.timed / 1e12, 1
    )
    row["losses"] = [round(float(entry["loss"]), 6) for entry in trainer.state.log_history if "loss" in entry]
    row["not_on_fast_path_because"], row["versions"] = trainer.form_reason, versions(system)
    if device.type == "cuda":
        row["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        row["allocation_retries"] = torch.cuda.memory_stats()["num_alloc_retries"]
        row["held_before_gib"] = round(held / 2**30, 2)  # what the case before left
    del trainer, loaded
    return row


class _Times:
    """When each step of this process began, had its gradients, had those of all, and ended."""

    def __init__(self) -> None:
        self.steps: list[list[float]] = []
        self._marks: list[float] = []

    def mark(self) -> None:
        """Note the time, once the device has done its work."""
        from benchmarks.harness.clock import now

        self._marks.append(now())

    def around(self, reduce: Any) -> Any:
        """Return the reduction of gradients with marks around it and around the wait for the slowest process."""
        import torch

        def timed(*args: Any, **kwargs: Any) -> None:
            self.mark()
            if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
                torch.distributed.barrier()
            self.mark()
            reduce(*args, **kwargs)
            self.mark()

        return timed

    def callback(self) -> Any:
        """Return the callback that marks the ends of steps."""
        from transformers import TrainerCallback

        times = self

        class Ends(TrainerCallback):  # type: ignore[misc]
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                times._marks.clear()
                times.mark()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                times.mark()
                times.steps.append(list(times._marks))

        return Ends()

    def summary(self, steps: list[list[float]], count: int, device: Any) -> Row:
        """Return means over steps, of the slowest and of all processes."""
        import torch

        parts = []
        for marks in steps:
            within = [marks[i + 1] - marks[i] for i in range(3)] if len(marks) == 5 else [0.0, 0.0, 0.0]
            parts.append([marks[-1] - marks[0], *within])
        own = torch.tensor(parts, dtype=torch.float64).mean(0).to(device)
        total, most = own.clone(), own.clone()
        if count > 1:
            torch.distributed.all_reduce(total)
            torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        mean = total / count
        seconds = float(mean[0])
        found: Row = {"seconds": round(float(most[0]), 4), "step_seconds": [round(part[0], 4) for part in parts]}
        if len(steps[0]) == 5:
            found["imbalance"] = round(float(most[1] / mean[1]) - 1, 4)
            found["waiting"] = round(float(mean[2]) / seconds, 4)
            found["communication"] = round(float(mean[3]) / seconds, 4)
        return found


if __name__ == "__main__":
    main()
