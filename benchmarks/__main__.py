"""All benchmarks behind one command.

    python -m benchmarks                       what there is
    python -m benchmarks throughput --help     how one is used

A benchmark is a module of this package with a `main`; a new one is found by being here.
"""

from __future__ import annotations

import ast
import importlib
import signal
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def benchmarks() -> dict[str, str]:
    """Return the commands and what each one does, the first line of its module."""
    found = {}
    for path in sorted(FOLDER.glob("[a-z]*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        functions = {node.name: node for node in module.body if isinstance(node, ast.FunctionDef)}
        if "main" in functions and path.stem not in INTERNAL:
            found[path.stem.replace("_", "-")] = (ast.get_docstring(module) or "").partition("\n")[0]
    return found


INTERNAL = {"worker", "random_model"}
"""Modules that other processes of the suite run."""


def main() -> None:
    available = benchmarks()
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(f"{__doc__}\n" + "\n".join(f"  {command:16} {line}" for command, line in available.items()))
        return
    if name not in available:
        raise SystemExit(f"there is no benchmark {name!r}; choose one of {', '.join(available)}")
    module = importlib.import_module(f"benchmarks.{name.replace('-', '_')}")
    sys.argv = [f"python -m benchmarks {name}", *rest]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and so processes are ended, too
    module.main()


if __name__ == "__main__":
    main()
