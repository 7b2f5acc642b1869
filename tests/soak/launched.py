"""Runs of two processes under `torchrun` that are stopped and killed: `python -m soak.launched --out FILE`.

Each case is one run of `wishbone train` on a tiny model with gloo. When it has logged a number of steps, or while it
writes a checkpoint, a signal goes to the launcher, to the group, or to one of the two; then the run is continued. What
it learned and logged must be bitwise that of a run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from soak.circumstances import circumstances
from soak.kills import CONFIG, learned, logged

SETTINGS = [
    "training.max_steps=60", "training.save_steps=7", "training.scheduler=constant", "training.guard=off",
    "data.eval_fraction=0.2", "training.eval_steps=15",
]  # fmt: skip
LONGEST = 300.0
"""Seconds that a run may take on a busy machine."""


@dataclass(frozen=True)
class Case:
    """What is done to a run.

    Attributes:
        signal: which one.
        to: "launcher", "group", or the rank of a process.
        lines: of training that are logged before.
        saving: whether it waits until a checkpoint is being written.
    """

    signal: str
    to: str
    lines: int
    saving: bool = False

    def reached(self, run: Path) -> bool:
        """Whether the moment has come."""
        if self.lines and _count(run) < self.lines:
            return False
        return (run / "checkpoints" / ".saving").is_dir() if self.saving else (run / ".lock").exists()


CASES = [
    Case("SIGTERM", "launcher", 0),
    Case("SIGTERM", "launcher", 9),
    Case("SIGINT", "group", 20),
    Case("SIGINT", "1", 17),
    Case("SIGHUP", "0", 31),
    Case("SIGKILL", "0", 12),
    Case("SIGKILL", "1", 23),
    Case("SIGKILL", "0", 6, saving=True),
    Case("SIGKILL", "1", 12, saving=True),
    Case("SIGKILL", "launcher", 10),
]


def start(folder: Path, run: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a run of two processes, in a group of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    launcher += ["--log-dir", str(folder / "elastic")]  # otherwise it leaves a directory in /tmp
    program = ["-m", "wishbone", "train", "tiny.yaml", *SETTINGS, f"output.dir={run}", *arguments]
    with (folder / f"{run}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *launcher, *program], cwd=folder, stdout=log, stderr=log, start_new_session=True
        )


def ranks(launcher: int) -> dict[str, int]:
    """The processes of a launcher by their rank."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (place / "environ").read_bytes().split(b"\0") if parent == launcher else []
        except OSError:  # it has ended
            continue
        rank = next((entry.partition(b"=")[2].decode() for entry in environment if entry.startswith(b"RANK=")), None)
        if rank is not None:
            found[rank] = int(place.name)
    return found


def disturb(folder: Path, number: int, case: Case) -> dict[str, object]:
    """Begin a run, send the signal, and say how it ended; processes that the launcher left are killed."""
    name = f"run-{number}"
    launched = start(folder, name)
    began = time.monotonic()
    while launched.poll() is None and not case.reached(folder / name) and time.monotonic() - began < LONGEST:
        time.sleep(0.002)
    children, sent = ranks(launched.pid), time.monotonic()
    if launched.poll() is None:
        if case.to == "group":
            os.killpg(launched.pid, signal.Signals[case.signal])
        else:
            os.kill(launched.pid if case.to == "launcher" else children[case.to], signal.Signals[case.signal])
    status = launched.wait(LONGEST)
    took = time.monotonic() - sent
    for child in children.values():
        if case.to == "launcher" and case.signal == "SIGKILL":
            _kill(child)
    return {"status": status, "seconds": round(took, 1), "steps_logged": _count(folder / name)}


def _kill(process: int) -> None:
    """Kill a process that has no parent any more, and wait until it is gone."""
    try:
        os.kill(process, signal.SIGKILL)
        while Path(f"/proc/{process}").exists():
            time.sleep(0.05)
    except ProcessLookupError:
        pass


def _count(run: Path) -> int:
    try:
        return (run / "metrics.jsonl").read_text().count('"loss"')
    except OSError:
        return 0


def main() -> None:
    """Disturb a run in each way and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="file for the results, JSON")
    parser.add_argument("--commit", default="", help="commit of this code, where git cannot tell")
    asked = parser.parse_args()
    from tiny import write_tiny_run

    from soak.trials import settle

    results: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="launched-") as scratch:
        folder = Path(scratch)
        settle(folder)
        write_tiny_run(folder, CONFIG, pairs=30)
        if status := start(folder, "whole").wait(LONGEST):
            raise RuntimeError(f"the run ended with {status}: {(folder / 'whole.log').read_text()[-2000:]}")
        whole = learned(folder / "whole"), logged(folder / "whole")
        for number, case in enumerate(CASES):
            ended, run = disturb(folder, number, case), folder / f"run-{number}"
            again = start(folder, run.name, *["--resume"] * run.exists()).wait(LONGEST)
            right = again == 0 and (learned(run), logged(run)) == whole
            results.append({**asdict(case), **ended, "continued_with_status": again, "bitwise": right})
            print(json.dumps(results[-1]), flush=True)
            if not right:
                print((folder / f"{run.name}.log").read_text(errors="replace")[-2000:], flush=True)
    wrong = sum(not result["bitwise"] for result in results)
    if asked.out:
        found = circumstances("soak.launched", asked.commit) | {"settings": SETTINGS, "cases": results}
        asked.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"{len(results)} runs of two processes, {wrong} went wrong", flush=True)
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
