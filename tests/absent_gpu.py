"""Programs of tests/ops that compile kernels for a GPU which is not here."""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

from forked import Forked, can_fork, started

PROGRAMS = Path(__file__).parent / "ops"


def printed_by(program: str, *arguments: object) -> dict[str, Any]:
    """The JSON object that a program prints at its end; it gives Triton another driver, in its own process."""

    def run() -> None:
        sys.path.insert(0, str(PROGRAMS))
        sys.argv = [program, *map(str, arguments)]
        runpy.run_path(str(PROGRAMS / program), run_name="__main__")

    child = (
        Forked(run, PROGRAMS, os.environ) if can_fork() else started([str(PROGRAMS / program), *map(str, arguments)])
    )
    said, complaint = child.communicate()
    assert child.returncode == 0, complaint
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found
