"""What results were found with: command, date, commit, machine and versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from datetime import date

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors")


def circumstances(module: str, commit: str = "") -> dict[str, object]:
    """Facts about this call of `python -m module`, as JSON; `commit` where git cannot tell."""
    commit = commit or _git("rev-parse", "HEAD")[1]
    changed = _git("diff", "--quiet", "HEAD")[0] == 1
    versions = {name: found for name in LIBRARIES if (found := _version(name))}
    return {
        "command": " ".join(["python", "-m", module, *map(_shown, sys.argv[1:])]),
        "date": date.today().isoformat(),
        "commit": f"{commit} with changes" if changed else commit,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), **versions},
    }


def _git(*arguments: str) -> tuple[int, str]:
    """Exit status and output, with which git also says that there is no repository."""
    if shutil.which("git") is None:
        return 128, ""
    outcome = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return outcome.returncode, outcome.stdout.strip()


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _shown(argument: str) -> str:
    """The last part of a path: where files lie says nothing."""
    return argument.rpartition("/")[2]
