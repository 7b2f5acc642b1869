"""Which directory a run writes to: `output.dir`, or `runs/<name>-<date>-<time>`; never one that holds another run."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

from wishbone.config.document import show, show_path
from wishbone.config.schema import RunConfig
from wishbone.errors import RequestError
from wishbone.paths import user_path

CONFIG_FILE = "config.yaml"
CHECKPOINTS = "checkpoints"
_LONGEST_NAME = 80
_STAMP = "[0-9]" * 8 + "-" + "[0-9]" * 6


def choose_run_directory(config: RunConfig, *, name: str | None = None, resume: bool = False) -> Path:
    """The directory of a run, as an absolute path; it is not created.

    Args:
        config: `output.dir` names the directory; without it a name is generated.
        name: first part of a generated name; None: the model's.
        resume: look for the directory of an earlier run: `output.dir`, or the latest one with a generated name.

    Raises:
        RequestError: without `resume`, the directory already holds a run; with `resume`, there is no run to continue.
    """
    if config.output.dir is not None:
        directory = user_path(config.output.dir).absolute()
        holds_run = (directory / CONFIG_FILE).exists() or (directory / CHECKPOINTS).exists()
        if holds_run and not resume:
            raise RequestError(
                f"output.dir: {show_path(directory)} already holds a run; continue it with --resume, "
                "name another directory, or delete it"
            )
        if resume and not holds_run:
            raise RequestError(
                f"output.dir: {show_path(directory)} holds no run to continue; start one without --resume, "
                "or name the directory of a run"
            )
        return directory
    runs = Path.cwd() / "runs"
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name or Path(config.model.name).name)[:_LONGEST_NAME].strip(".-") or "run"
    if resume:
        earlier = sorted(path for path in runs.glob(f"{stem}-{_STAMP}*") if path.is_dir())
        if not earlier:
            raise RequestError(
                f"there is no run {show(stem)} in {show_path(runs)} to continue; start one without --resume, "
                "or name its directory with output.dir"
            )
        return earlier[-1]
    made = f"{stem}-{datetime.now():%Y%m%d-%H%M%S}"
    taken = {path.name for path in runs.glob(f"{made}*")}
    return runs / next(
        option for option in (made, *(f"{made}-{n}" for n in range(2, len(taken) + 3))) if option not in taken
    )
