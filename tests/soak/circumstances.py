"""What results were found with: command, date, commit, machine and versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import date

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors")


def circumstances(module: str) -> dict[str, object]:
    """Facts about this call of `python -m module`, as JSON."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], check=False).returncode
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {
        "command": " ".join(["python", "-m", module, *map(_shown, sys.argv[1:])]),
        "date": date.today().isoformat(),
        "commit": f"{commit} with changes" if changed else commit,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), **versions},
    }


def _shown(argument: str) -> str:
    """The last part of a path: where files lie says nothing."""
    return argument.rpartition("/")[2]
