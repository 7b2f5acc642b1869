"""A newcomer's whole path in a fresh clone: the README's own lines, then chat, measuring, export and a model card.

    python -m soak.newcomer [--out FILE]

Run from `tests/`. The clone holds what is committed. Its virtual environment sees the packages of this one but not this
package, so that `pip install .` is the real one and nothing large is downloaded. FILE gets the seconds of each command.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from test_readme import ROOT, blocks, environment_of_a_newcomer

from soak.circumstances import circumstances

AFTERWARDS = [
    ["bash", "-c", "printf 'How long do I bake bread?\\n/base\\n' | wishbone chat runs/mine --max-new-tokens 30"],
    ["wishbone", "eval", "runs/mine", "pairs.jsonl"],
    ["wishbone", "export", "runs/mine", "--gguf", "mine.gguf", "--quantize", "q8_0"],
    ["wishbone", "export", "runs/mine", "--merged", "mine-merged", "--ollama", "mine-ollama", "--vllm"],
    ["wishbone", "push", "runs/mine", "someone/mine", "--dry-run"],
]
"""What follows the README's commands; each must end with status 0."""
LEFT = ("mine.gguf", "mine-merged/model.safetensors", "mine-ollama/Modelfile", "runs/mine/report.html")
"""Files that are there at the end."""


def shell_lines(text: str) -> list[str]:
    """The commands of a block, a here-document or a continued line as one."""
    commands, waiting, end = [], "", ""
    for line in text.splitlines():
        waiting = f"{waiting}\n{line}" if waiting else line
        if end:
            if line == end:
                commands.append(waiting)
                waiting = end = ""
        elif "<<'" in line:
            end = line.partition("<<'")[2].partition("'")[0]
        elif not line.endswith("\\"):
            commands.append(waiting)
            waiting = ""
    return commands


def walk(folder: Path) -> dict[str, Any]:
    """Walk the path in a folder and return what happened; ends at the first command that fails."""
    clone = folder / "wishbone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    environment = environment_of_a_newcomer(folder / "venv")
    (block,) = blocks("Train on your own pairs", "sh")
    commands = [["bash", "-eu", "-o", "pipefail", "-c", line] for line in shell_lines(block)]
    steps: list[dict[str, Any]] = []
    for command in [*commands, *AFTERWARDS]:
        began = time.monotonic()
        done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
        shown = command[-1].splitlines()[0] if command[0] == "bash" else " ".join(command)
        seconds = round(time.monotonic() - began, 1)
        steps.append({"command": shown, "status": done.returncode, "seconds": seconds})
        print(f"{seconds:7.1f} s  status {done.returncode}  {shown}", flush=True)
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            break
    missing = [name for name in LEFT if not (clone / name).is_file()]
    sound = not missing and all(step["status"] == 0 for step in steps)
    seconds = round(sum(step["seconds"] for step in steps))
    return circumstances("soak.newcomer") | {"sound": sound, "missing": missing, "seconds": seconds, "steps": steps}


def main() -> int:
    """Read the command line and walk; the exit status is 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the file to write")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="newcomer-") as folder:
        found = walk(Path(folder))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(not found["sound"])


if __name__ == "__main__":
    sys.exit(main())
