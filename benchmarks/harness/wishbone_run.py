"""A run of `wishbone train` in a process of its own, and what its directory says about it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.results import Row

WISHBONE = (sys.executable, "-m", "wishbone")


@dataclass(frozen=True)
class FinishedRun:
    """The files of a run that ended well, parsed."""

    summary: Row
    metrics: list[Row]
    environment: Row

    @property
    def losses(self) -> list[float]:
        """The loss of each step."""
        return [line["loss"] for line in self.metrics if "loss" in line]


def train(config: Path, directory: Path, overrides: Sequence[str] = (), **variables: str) -> FinishedRun:
    """Train what a configuration file says, into `directory`.

    Raises:
        SystemExit: the run failed; with its output and its error log.
    """
    command = [*WISHBONE, "train", str(config), *overrides, f"output.dir={directory}"]
    done = subprocess.run(command, env=_environment(variables), capture_output=True, text=True, check=False)
    if done.returncode:
        log = directory / "error.log"
        raise SystemExit(done.stdout + done.stderr + (log.read_text(encoding="utf-8") if log.exists() else ""))
    metrics = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    summary, environment = (
        json.loads((directory / name).read_text(encoding="utf-8")) for name in ("summary.json", "environment.json")
    )
    return FinishedRun(summary, [json.loads(line) for line in metrics], environment)


def plan(config: Path, overrides: Sequence[str] = (), **variables: str) -> Row:
    """Return what `wishbone plan --gpu none --json` answers for a configuration file."""
    command = [*WISHBONE, "plan", str(config), *overrides, "--gpu", "none", "--json"]
    done = subprocess.run(command, env=_environment(variables), capture_output=True, text=True, check=True)
    answer: Row = json.loads(done.stdout)
    return answer


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, **variables}
