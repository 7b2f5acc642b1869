"""Runs that are killed with SIGKILL and continued: `python -m soak.kills --kills 300 --seed 0 --out FILE`.

A trial is one run of `wishbone train` on a tiny model. It is killed at a moment that the seed chooses, continued with
`--resume`, often killed again, and at last left alone. What it learned must be bitwise what a run learns that was never
killed. Each attempt is a process of its own, forked from one that has the libraries loaded. Moments:

    start     after a share of the time that loading takes
    step      some milliseconds after it logged its n-th step
    file      right before its k-th operation on a file or directory below the run directory (Python's audit events)
    saving    some milliseconds after the n-th checkpoint began to be written
    between   right after the n-th checkpoint was put in its place

Before the first checkpoint there is nothing to continue, and `--resume` starts again; what a process leaves that was
killed before it locked its directory is removed first.
"""

from __future__ import annotations

import argparse
import functools
import gc
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from soak.circumstances import circumstances
from wishbone.config.run_directory import LOCK

KINDS = ("start", "step", "step", "file", "file", "saving", "saving", "between")
LONGEST = 300.0
"""Seconds that a process may take on a busy machine."""
CONFIG = """\
model: {name: ./model}
data: {train: pairs.jsonl, max_length: 64}
adapter: {rank: 2}
training: {batch_size: 2, gradient_accumulation: 2, learning_rate: 0.01, warmup_ratio: 0.1}
"""
VARIANTS: dict[str, list[str]] = {
    "adapter": ["training.max_steps=8", "training.save_steps=2", "training.scheduler=constant"],
    "adapter, no reference store": [
        "training.epochs=2", "training.save_steps=3", "training.reference_store=off", "data.eval_fraction=0.2",
    ],
    "adapter with dropout": ["training.max_steps=8", "adapter.dropout=0.2", "training.save_steps=1"],
    "all weights": ["training.max_steps=7", "adapter.method=full", "training.scheduler=constant"],
    "epochs, evaluated": ["training.epochs=3", "data.eval_fraction=0.2", "training.eval_steps=2"],
    "stopped by the guard": [
        "training.max_steps=12", "data.eval_fraction=0.3", "training.save_steps=1", "training.guard=stop",
        "training.guard_steps=1", "training.learning_rate=0.03", "training.scheduler=constant",
    ],
}  # fmt: skip
"""Settings of the runs. "all weights" and "epochs, evaluated" save once an epoch; the last one ends early."""


@dataclass
class Trial:
    """What came of one run: its kills as `kind status-of-the-next-resume`, and whether its weights are right."""

    seed: int
    variant: str
    kills: list[str] = field(default_factory=list)
    wrong: str | None = None


@dataclass(frozen=True)
class Whole:
    """A run that nobody killed: what it learned and logged, its seconds, checkpoints and operations on files."""

    weights: str
    logged: list[tuple[object, object]]
    seconds: float
    checkpoints: int
    operations: int


class Workplace:
    """A directory with a model, pairs and a configuration, in which runs are started as forked processes."""

    def __init__(self, folder: Path) -> None:
        from tiny import write_tiny_run

        self.folder = folder
        write_tiny_run(folder, CONFIG, pairs=16)

    def start(self, run: Path, settings: list[str], *, resume: bool, kill_at_operation: int | None = None) -> int:
        """Fork a process that trains, and return its number."""
        child = os.fork()
        if child:
            return child
        status = 1
        try:
            os.chdir(self.folder)
            os.environ["WISHBONE_REFERENCE_STORE"] = f"{run}.sqlite"
            log = os.open(f"{run}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            _count_operations(run, kill_at_operation)
            status = _train(["tiny.yaml", *settings, f"output.dir={run}", *["--resume"] * resume])
        finally:
            os._exit(status)


def _train(arguments: list[str]) -> int:
    from wishbone.cli import app

    try:
        app(["train", *arguments], standalone_mode=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def _count_operations(run: Path, last: int | None) -> None:
    """Note how many operations this process does on something below a directory; let it kill itself before the last."""
    count, below, note = 0, str(run), os.open(f"{run}.operations", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if not event.startswith(("open", "os.", "shutil.")) or not arguments:
            return
        if isinstance(arguments[0], str | os.PathLike) and os.fspath(arguments[0]).startswith(f"{below}/"):
            count += 1
            os.pwrite(note, f"{count}".encode(), 0)
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _wait(child: int, moment: Callable[[], bool] | None = None) -> int:
    """Wait for a process; kill it once `moment()` is true. Returns its exit status, negative for a signal."""
    began = time.monotonic()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        late = time.monotonic() - began > LONGEST
        if late or (moment is not None and moment()):
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            return 124 if late else os.waitstatus_to_exitcode(status)
        time.sleep(0.0005 if moment else 0.01)


def _moment(kind: str, run: Path, random: Random, whole: Whole) -> Callable[[], bool]:
    """When to kill, for the kinds that look from outside."""
    began = time.monotonic()
    after = {"start": 0.4 * whole.seconds, "between": 0.0}.get(kind, 0.06) * random.random()
    before = _signs(kind, run)
    most = len(whole.logged) if kind == "step" else whole.checkpoints
    wanted = random.randint(1, max(1, most - len(before)))
    seen: set[str] = set()
    since: float | None = began if kind == "start" else None

    def now() -> bool:
        nonlocal since
        if since is None:
            seen.update(_signs(kind, run) - before)
            if len(seen) >= wanted:
                since = time.monotonic()
        return since is not None and time.monotonic() - since >= after

    return now


def _signs(kind: str, run: Path) -> set[str]:
    """Steps that were logged, checkpoints that are begun, or checkpoints that are there."""
    try:
        match kind:
            case "step":
                return {str(line["step"]) for line in _lines(run) if "loss" in line}
            case "saving":
                return set(os.listdir(run / "checkpoints" / ".saving"))
            case "between":
                return {name for name in os.listdir(run / "checkpoints") if name.startswith("checkpoint-")}
    except (OSError, ValueError):  # not there yet, or a line that is being written
        pass
    return set()


def _lines(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def learned(run: Path) -> str | None:
    """The SHA-256 of the weights that a run ended with."""
    digest = hashlib.sha256()
    files = sorted([*run.glob("adapter/*.safetensors"), *run.glob("model/*.safetensors")])
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest() if files else None


def logged(run: Path) -> list[tuple[object, object]]:
    """Step and loss of each line of training in metrics.jsonl."""
    return [(line["step"], line["loss"]) for line in _lines(run) if "loss" in line]


def trial(work: Workplace, seed: int, whole: dict[str, Whole]) -> Trial:
    """Run, kill, continue; compare with the whole run of the same settings."""
    random = Random(f"kills {seed}")
    variant = random.choice(list(VARIANTS))
    expected = whole[variant]
    run, settings, outcome = work.folder / f"run-{seed}", VARIANTS[variant], Trial(seed, variant)
    resume = False
    for attempt in range(random.randint(1, 4) + 1):
        last = attempt == 4 or (attempt > 0 and random.random() < 0.25)
        kind = random.choice(KINDS)
        at = random.randint(1, expected.operations) if kind == "file" and not last else None
        child = work.start(run, settings, resume=resume, kill_at_operation=at)
        moment = None if last or kind == "file" else _moment(kind, run, random, expected)
        status = _wait(child, moment)
        if status == -signal.SIGKILL:
            outcome.kills.append(kind)
        elif status == 0:
            break
        else:
            outcome.wrong = f"exit {status}: {_tail(run)}"
            return outcome
        resume = (run / LOCK).exists()
        if not resume:
            shutil.rmtree(run, ignore_errors=True)
    if status != 0:
        status = _wait(work.start(run, settings, resume=resume))
        if status != 0:
            outcome.wrong = f"exit {status}: {_tail(run)}"
            return outcome
    if learned(run) != expected.weights:
        outcome.wrong = "other weights"
    elif logged(run) != expected.logged:
        outcome.wrong = "other lines of metrics"
    elif (run / "checkpoints" / ".saving").exists():
        outcome.wrong = "a rest of an unfinished checkpoint"
    shutil.rmtree(run)
    return outcome


def _tail(run: Path) -> str:
    return " ".join(Path(f"{run}.log").read_text(errors="replace").split())[-400:]


def whole_run(work: Workplace, variant: str) -> Whole:
    """A run that nobody kills."""
    run, settings = work.folder / f"whole-{list(VARIANTS).index(variant)}", VARIANTS[variant]
    began = time.monotonic()
    status = _wait(work.start(run, settings, resume=False))
    weights = learned(run)
    if status != 0 or weights is None:
        raise RuntimeError(f"the run of {variant!r} ended with {status}: {_tail(run)}")
    checkpoints = sum(1 for _ in (run / "checkpoints").glob("checkpoint-*"))
    every = next((int(text.partition("=")[2]) for text in settings if "save_steps" in text), None)
    checkpoints = checkpoints if every is None else len(logged(run)) // every
    operations = int(Path(f"{run}.operations").read_text())
    return Whole(weights, logged(run), time.monotonic() - began, checkpoints, operations)


def main() -> None:
    """Kill as often as asked for and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=300, help="stop after so many")
    parser.add_argument("--seed", type=int, default=0, help="of the first trial")
    parser.add_argument("--trials", type=int, default=10**9, help="stop after so many")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--processes", type=int, default=1, help="trials at the same time")
    parser.add_argument("--out", type=Path, help="file for the results, JSON")
    parser.add_argument("--commit", default="", help="commit of this code, where git cannot tell")
    asked = parser.parse_args()
    from soak.trials import settle

    began = time.monotonic()
    kinds: Counter[str] = Counter()
    variants: Counter[str] = Counter()
    wrong: list[dict[str, object]] = []
    trials = 0
    with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
        settle(Path(scratch))
        import wishbone.run.run  # noqa: F401  loaded once, for all processes that are forked

        importlib.metadata.metadata = functools.cache(importlib.metadata.metadata)  # read at every checkpoint
        work = Workplace(Path(scratch))
        gc.freeze()  # what is loaded stays: forked processes need not look through it
        with multiprocessing.get_context("fork").Pool(asked.processes) as pool:
            runs = pool.map(functools.partial(whole_run, work), VARIANTS, chunksize=1)
            whole = dict(zip(VARIANTS, runs, strict=True))
            print({variant: round(one.seconds, 1) for variant, one in whole.items()}, flush=True)
            while sum(kinds.values()) < asked.kills and trials < asked.trials:
                if time.monotonic() - began > asked.seconds:
                    break
                seeds = range(asked.seed + trials, asked.seed + trials + 2 * asked.processes)
                for outcome in pool.imap_unordered(functools.partial(trial, work, whole=whole), seeds):
                    trials += 1
                    kinds.update(outcome.kills)
                    variants.update([outcome.variant] * len(outcome.kills))
                    if outcome.wrong:
                        wrong.append({"seed": outcome.seed, "variant": outcome.variant, "what": outcome.wrong})
                    killed, end = " ".join(outcome.kills) or "never", outcome.wrong or "right"
                    print(f"{outcome.seed} {outcome.variant}: killed {killed}; {end}", flush=True)
                if asked.out:
                    took = round(time.monotonic() - began, 1)
                    _write(asked.out, asked.commit, asked.seed, trials, kinds, variants, wrong, took)
    print(f"{sum(kinds.values())} kills in {trials} runs, {len(wrong)} runs went wrong", flush=True)
    raise SystemExit(bool(wrong))


def _write(
    path: Path,
    commit: str,
    seed: int,
    trials: int,
    kinds: Counter[str],
    variants: Counter[str],
    wrong: list[dict[str, object]],
    seconds: float,
) -> None:
    results = circumstances("soak.kills", commit) | {
        "first_seed": seed,
        "runs": trials,
        "kills": sum(kinds.values()),
        "kills_by_moment": dict(sorted(kinds.items())),
        "kills_by_variant": dict(sorted(variants.items())),
        "runs_with_other_weights_or_an_error": wrong,
        "seconds": seconds,
    }
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
