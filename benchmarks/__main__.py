"""All benchmarks behind one command.

    python -m benchmarks                       list the benchmarks
    python -m benchmarks throughput --help     show how one is used

A benchmark is a module of `commands/` with a `main`.
"""

from __future__ import annotations

import ast
import importlib
import signal
import sys
from pathlib import Path

COMMANDS = Path(__file__).parent / "commands"


def benchmarks() -> dict[str, str]:
    """Return the first line of each command's module by the command's name, without importing anything."""
    found = {}
    for path in sorted(COMMANDS.glob("[a-z]*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        found[path.stem.replace("_", "-")] = (ast.get_docstring(module) or "").partition("\n")[0]
    return found


def main() -> None:
    available = benchmarks()
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(f"{__doc__}\n" + "\n".join(f"  {command:17} {line}" for command, line in available.items()))
        return
    if name not in available:
        raise SystemExit(f"there is no benchmark {name!r}; choose one of {', '.join(available)}")
    module = importlib.import_module(f"benchmarks.commands.{name.replace('-', '_')}")
    sys.argv = [f"python -m benchmarks {name}", *rest]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that child processes end, too
    module.main()


if __name__ == "__main__":
    main()
