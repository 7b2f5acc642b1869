"""TRL's own tests as the judge: what passes with TRL's trainer must pass with Wishbone's.

    python tests/judge/judge_with_trl_tests.py PATH_TO_TRL_CHECKOUT [--precision bfloat16] [-k EXPRESSION]

The checkout is TRL's repository at the tag of the installed version, because the package that pip installs has no
tests. The judge copies `tests/test_dpo_trainer.py` and the DPO part of `tests/invariant/` unchanged and runs them
twice, each time in new processes: with TRL as installed, and after `PatchDPOTrainer()`. Nothing is downloaded: tiny
random models and synthetic data lie where the tests name hub ids. TRL recorded its trajectories with a large model on a
GPU, so the judge records them again, from TRL and the stand-in model. It compares trajectories in float32 only: in
bfloat16 TRL leaves its own trajectory as soon as a step is divided differently.

It prints one table and every test that does not pass on both sides. Exit status 1: a test passes with TRL alone; 2:
nothing could be judged. The tests are somebody else's code, so they see only those environment variables that locate
libraries and devices.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

from rich.table import Table

from wishbone.cache import cache_root
from wishbone.cli.console import plain, screen

BOTH, ONLY_TRL, ONLY_WISHBONE = "passed by both", "only TRL", "only Wishbone"
NEITHER, SKIPPED = "failed by both", "skipped by both"
DPO_TESTS, TRAJECTORIES = "tests/test_dpo_trainer.py", "tests/invariant/test_invariant.py"
PASSED_ON = ("LANG", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "TMPDIR", "TRITON_INTERPRET")
FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Outcome:
    """How one test ended: "passed", "failed" or "skipped", and the first line of the reason."""

    result: str
    reason: str = ""


NOT_RUN = Outcome("failed", "was not run")


def verdict(theirs: Outcome, ours: Outcome) -> str:
    """Return the row of the table that a test belongs to."""
    if theirs.result == "passed":
        return BOTH if ours.result == "passed" else ONLY_TRL
    if ours.result == "passed":
        return ONLY_WISHBONE
    return SKIPPED if theirs.result == ours.result == "skipped" else NEITHER


def read_report(report: Path) -> dict[str, Outcome]:
    """Return how each test of a JUnit report ended, by class and name."""
    found = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        result = Outcome("passed")
        for element in case:
            if element.tag in ("failure", "error", "skipped"):
                lines = element.get("message", "").splitlines() or [""]
                result = Outcome("skipped" if element.tag == "skipped" else "failed", lines[0])
        found[f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"] = result
    return found


class Judge:
    """Runs a checkout's tests in a directory that holds everything they would load from the hub.

    Args:
        checkout: TRL's repository.
        work: an empty directory.
        precision: of arithmetic: "float32", "bfloat16", or "default", which TRL refuses without a GPU.
    """

    def __init__(self, checkout: Path, work: Path, precision: str) -> None:
        from datasets import disable_progress_bars
        from stand_in_datasets import make_datasets
        from stand_in_models import make_models
        from transformers.utils import logging

        self.hub, self.copy, self.work, self.precision = work / "hub", work / "checkout", work, precision
        disable_progress_bars()
        logging.disable_progress_bar()
        make_datasets(self.hub, images=find_spec("PIL") is not None)
        self.missing = make_models(self.hub)
        shutil.copytree(checkout / "tests", self.copy / "tests")
        settings = checkout / "pyproject.toml"
        if settings.is_file():
            shutil.copy(settings, self.copy)

    @property
    def has_trajectories(self) -> bool:
        """Whether the checkout has the invariant tests."""
        return (self.copy / TRAJECTORIES).is_file()

    def record_trajectory(self) -> bool:
        """Record TRL's trajectory with the stand-in model; return whether that worked."""
        return self._python("trl", str(self.copy / TRAJECTORIES), "dpo") == 0

    def run(self, trainer: str, expression: str, trajectories: bool) -> dict[str, Outcome]:
        """Return how the tests ended with "trl" or "wishbone"; empty if pytest wrote no report."""
        report = self.work / f"{trainer}.xml"
        tests = [str(self.copy / DPO_TESTS), *([str(self.copy / TRAJECTORIES)] if trajectories else [])]
        selection = f"not sft_ and ({expression})" if expression else "not sft_"
        options = ["-q", "-k", selection, "-p", "no:cacheprovider", f"--rootdir={self.copy}", f"--junitxml={report}"]
        self._python(trainer, "-m", "pytest", *options, *tests)
        return read_report(report) if report.is_file() else {}

    def _python(self, trainer: str, *arguments: str) -> int:
        """Run Python among the stand-ins, with a bare environment and its output in a file; return the exit status."""
        home = self.work / "home"
        home.mkdir(exist_ok=True)
        own = {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.defpath]),
            "HOME": str(home),
            "HF_HOME": str(home / "huggingface"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(FOLDER / "judged"), os.environ.get("PYTHONPATH", "")]),
            "TQDM_DISABLE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "WISHBONE_CACHE": str(home / "wishbone"),
            "JUDGED_TRAINER": trainer,
            "JUDGED_PRECISION": self.precision,
        }
        environment = own | {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        with (self.work / f"{trainer}.log").open("a", encoding="utf-8") as log:
            command = [sys.executable, *arguments]
            return subprocess.run(
                command, cwd=self.hub, env=environment, stdout=log, stderr=log, check=False
            ).returncode


def show(theirs: dict[str, Outcome], ours: dict[str, Outcome]) -> int:
    """Print the table and every test that does not pass on both sides; return how many pass with TRL alone."""
    tests: dict[str, list[str]] = {name: [] for name in (BOTH, ONLY_TRL, ONLY_WISHBONE, NEITHER, SKIPPED)}
    for test in sorted(theirs.keys() | ours.keys()):
        tests[verdict(theirs.get(test, NOT_RUN), ours.get(test, NOT_RUN))].append(test)
    console, table = screen(), Table("TRL's tests", "number")
    for name, members in tests.items():
        table.add_row(name, str(len(members)), style="bold red" if name == ONLY_TRL and members else "")
    console.print(table)
    for name in (ONLY_TRL, ONLY_WISHBONE, NEITHER):
        for test in tests[name]:
            sides = {"TRL": theirs.get(test, NOT_RUN), "Wishbone": ours.get(test, NOT_RUN)}
            reasons = [f"{side}: {o.result}, {o.reason}" for side, o in sides.items() if o.result != "passed"]
            console.print(plain(f"{name}: {test}\n    " + "\n    ".join(reasons)), soft_wrap=True)
    return len(tests[ONLY_TRL])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the judge and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkout", type=Path, help="TRL's repository at the tag of the installed version")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "default"),
        default="float32",
        help="precision of the arithmetic; TRL's default needs a GPU",
    )
    parser.add_argument("-k", dest="expression", default="", help="run only tests that match, as pytest's -k")
    parser.add_argument(
        "--work", type=Path, default=cache_root() / "trl-judge", help="directory for models and logs; emptied first"
    )
    given = parser.parse_args(arguments)
    if not (given.checkout / DPO_TESTS).is_file():
        print(f"{given.checkout} has no {DPO_TESTS}: give a checkout of TRL's repository", file=sys.stderr)
        return 2
    work = given.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    stated = given.checkout / "VERSION"
    tag = stated.read_text(encoding="utf-8").strip() if stated.is_file() else "unknown"
    versions = ", ".join(f"{name} {version(name)}" for name in ("trl", "transformers", "torch", "peft"))
    console = screen()
    console.print(plain(f"{versions}, Python {platform.python_version()}, {given.precision}; tests of TRL {tag}"))
    judge = Judge(given.checkout, work, given.precision)
    for name, reason in judge.missing.items():
        console.print(plain(f"no stand-in for {name}: {reason}"), soft_wrap=True)
    trajectories = given.precision == "float32" and judge.has_trajectories and judge.record_trajectory()
    theirs = judge.run("trl", given.expression, trajectories)
    ours = judge.run("wishbone", given.expression, trajectories)
    console.print(plain(f"output of the runs: {work / 'trl.log'}, {work / 'wishbone.log'}"), soft_wrap=True)
    if not theirs:
        print("no test was run against TRL: see the output of the runs", file=sys.stderr)
        return 2
    return 1 if show(theirs, ours) else 0


if __name__ == "__main__":
    sys.exit(main())
