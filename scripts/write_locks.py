"""Write the lock files in requirements/, or resolve the newest or the lowest versions that pyproject.toml allows.

    python scripts/write_locks.py [--upgrade]
    python scripts/write_locks.py --resolution {highest,lowest-direct} --python PYTHON --out FILE

`requirements/locked.txt` has exact versions and hashes of what `make demo` and `make test` install, one list for
every Python and platform; `requirements/tools.txt` has those of uv, which resolves both, and `requirements/docs.txt`
those of what `make docs` builds the site with. A version stays as it is while
it fits; `--upgrade` takes the newest. No file names an index.

torch is resolved and left out: the wheel depends on the machine, so `TORCH` of the Makefile installs it. Left out with
it are the CUDA libraries, which only its CUDA wheels need. Its other dependencies are locked.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKED = "requirements/locked.txt"
TOOLS = "requirements/tools.txt"
SITE = "requirements/docs.txt"
TORCH = "requirements/torch.txt"
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28", "aarch64-apple-darwin")
MACOS = {"MACOSX_DEPLOYMENT_TARGET": "14.0"}  # the oldest that bitsandbytes has a wheel for
PROJECT = ("pyproject.toml", "--extra", "dev", "--group", "build")
ONE_LIST = ("--universal", "--python-version", PYTHONS[0], "--fork-strategy", "fewest")
PLAIN = ("--quiet", "--generate-hashes", "--no-emit-index-url", "--no-annotate")


def uv(*arguments: str, read: str | None = None) -> str:
    """What uv writes to its standard output, given `read` as its standard input.

    It runs in the root of the checkout. An error of uv is shown and ends the script.
    """
    program = Path(sys.executable).with_name("uv")
    command = [str(program) if program.exists() else "uv", *arguments]
    environment = os.environ | MACOS
    outcome = subprocess.run(command, cwd=ROOT, env=environment, input=read, stdout=subprocess.PIPE, text=True)
    if outcome.returncode:
        raise SystemExit(outcome.returncode)
    return outcome.stdout


def cuda_libraries() -> list[str]:
    """Packages that a CUDA wheel of the locked torch needs and a CPU wheel does not."""
    resolved = uv("pip", "compile", *ONE_LIST, "--quiet", "--no-header", "--no-annotate", TORCH)
    return re.findall(r"^((?:nvidia|cuda)-[\w-]+)==", resolved, re.MULTILINE)


def write_locks(upgrade: bool) -> None:
    """Write the lock files and check that every locked version has a wheel on every supported Python and platform."""
    header = ("--custom-compile-command", "make lock")
    options = (*ONE_LIST, *PLAIN, *header, *(["--upgrade"] if upgrade else []))
    left_out = [word for name in ["torch", *cuda_libraries()] for word in ("--no-emit-package", name)]
    uv("pip", "compile", *PROJECT, "--constraint", TORCH, *options, *left_out, "--output-file", LOCKED)
    for wanted, written in (("requirements/tools.in", TOOLS), ("requirements/docs.in", SITE)):
        uv("pip", "compile", wanted, *options, "--output-file", written)
    wheels = ("--dry-run", "--quiet", "--no-deps", "--only-binary", ":all:")
    with tempfile.TemporaryDirectory() as nowhere:
        for platform, python in itertools.product(PLATFORMS, PYTHONS):
            target = ("--python-platform", platform, "--python-version", python, "--target", nowhere)
            uv("pip", "install", *wheels, *target, "--requirement", LOCKED)
            print(f"every version has a wheel for Python {python} on {platform}")


def resolve(resolution: str, python: str, out: str) -> None:
    """Write the versions that one resolution takes for one Python interpreter on this machine, torch left out."""
    options = (*PLAIN, "--no-header", "--resolution", resolution, "--python", python, "--excludes", "-")
    Path(out).write_text(uv("pip", "compile", *PROJECT, *options, read="torch\n"), encoding="utf-8")


def main(arguments: list[str]) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    parser.add_argument("--resolution", choices=("highest", "lowest-direct"), help="resolve for one environment")
    parser.add_argument("--python", help="its interpreter")
    parser.add_argument("--out", type=os.path.abspath, help="the file to write")
    options = parser.parse_args(arguments)
    if options.resolution:
        resolve(options.resolution, options.python, options.out)
    else:
        write_locks(options.upgrade)


if __name__ == "__main__":
    main(sys.argv[1:])
