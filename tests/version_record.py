"""The record of one test run: what was installed, on which machine, and how many tests passed.

`pytest --record=FILE` writes it as JSON; `scripts/document_versions.py` makes docs/versions.md of such files.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import tomllib
from collections.abc import Mapping, Sized
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
OUTCOMES = ("passed", "failed", "error", "skipped")


def packages() -> list[str]:
    """What the project asks for at run time, and triton, which brings its kernels, in the order of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = [wanted for wanted in project["optional-dependencies"]["dev"] if wanted.startswith(("bits", "triton"))]
    return [re.split(r"[^\w-]", wanted)[0] for wanted in [*project["dependencies"], *optional]]


def installed() -> dict[str, str]:
    """Versions of those packages in this environment; a package that is not installed is left out."""
    found = {}
    for name in packages():
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit that is checked out, with `-dirty` behind it if files differ from it; empty outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def gpu_name() -> str | None:
    """Name of the GPU that tests use, or None."""
    import torch  # which is loaded where tests run

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def record(stats: Mapping[str, Sized], gpu: str | None) -> dict[str, Any]:
    """The record of a run that pytest's terminal reporter counted in `stats`."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "gpu": gpu,
        "outcome": {name: len(stats.get(name, ())) for name in OUTCOMES},
        "versions": installed(),
    }


def write_record(path: Path, stats: Mapping[str, Sized], gpu: str | None) -> None:
    path.write_text(json.dumps(record(stats, gpu), indent=2) + "\n", encoding="utf-8")
