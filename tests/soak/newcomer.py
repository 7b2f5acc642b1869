"""A newcomer's whole path in a fresh clone: the README's own lines, then chat, measuring, export and a model card.

    python -m soak.newcomer [--out FILE] [--only README|SHAPE ...]

Then the same with the newcomer's own pairs in five shapes: as TRL writes them, as conversations, as CSV, with the
prompt in both answers, and as Alpaca writes instructions. Run from `tests/`. The clone holds what is committed. Its
virtual environment sees the packages of this one but not this package, so that `pip install .` is the real one and
nothing large is downloaded. FILE gets the seconds of each command.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from test_readme import ROOT, blocks, environment_of_a_newcomer

from soak.circumstances import circumstances

README = "README"
AFTERWARDS = [
    ["bash", "-c", "printf 'How long do I bake bread?\\n/base\\n' | wishbone chat runs/mine --max-new-tokens 30"],
    ["wishbone", "eval", "runs/mine", "pairs.jsonl"],
    ["wishbone", "export", "runs/mine", "--gguf", "mine.gguf", "--quantize", "q8_0"],
    ["wishbone", "export", "runs/mine", "--merged", "mine-merged", "--ollama", "mine-ollama", "--vllm"],
    ["wishbone", "push", "runs/mine", "someone/mine", "--dry-run"],
]
"""What follows the README's commands; each must end with status 0."""
PAIRS = [
    ("How long do I boil an egg?", "Ten minutes.", "Eggs have a long and rich history. Let us begin with that."),
    ("Is Pluto a planet?", "No, a dwarf planet.", "That is a fascinating question, and many people ask it."),
    ("What does a baker make?", 'Bread, rolls and "cakes".', "Bakers are admired in many cultures."),
    ("When do bees sleep?", "At night.", "Sleep is important to all animals,\nand bees are no exception."),
]
"""Prompt, chosen and rejected; with quotes, a comma and a line break, which CSV has to quote."""


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _table() -> str:
    file = io.StringIO(newline="")
    rows = csv.writer(file)
    rows.writerows([("prompt", "chosen", "rejected"), *PAIRS])
    return file.getvalue()


def _turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


SHAPES = {
    "texts.jsonl": _lines([{"prompt": q, "chosen": good, "rejected": bad} for q, good, bad in PAIRS]),
    "conversations.jsonl": _lines([{"chosen": _turns(q, good), "rejected": _turns(q, bad)} for q, good, bad in PAIRS]),
    "table.csv": _table(),
    "implicit.jsonl": _lines([{"chosen": f"{q} {good}", "rejected": f"{q} {bad}"} for q, good, bad in PAIRS]),
    "alpaca.json": json.dumps(
        [{"instruction": q, "input": "", "chosen": good, "rejected": bad} for q, good, bad in PAIRS], indent=1
    ),
}
"""Files of the same pairs as people have them, by name."""
SETTINGS = ["training.learning_rate=1e-3", "training.max_steps=2", "output.answers=1", "output.report_to=[]"]


def own_pairs(file: str) -> list[list[str]]:
    """The commands from a file of pairs to a model in Ollama's form."""
    run, name = f"runs/{Path(file).stem}", Path(file).stem
    return [
        ["wishbone", "check", file, "--model", "smollm2-135m-instruct"],
        ["wishbone", "init", file, "--output", f"{name}.yaml"],
        ["wishbone", "plan", f"{name}.yaml"],
        ["wishbone", "train", f"{name}.yaml", f"output.dir={run}", *SETTINGS],
        ["bash", "-c", f"echo 'Is Mars a planet?' | wishbone chat {run} --json --max-new-tokens 8 | grep '\"answer\"'"],
        ["wishbone", "eval", run, file],
        ["wishbone", "export", run, "--ollama", f"{name}-ollama"],
    ]


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


def walk(folder: Path, paths: Sequence[str]) -> dict[str, Any]:
    """Walk paths (the README's, files of `SHAPES`) in a folder and return what happened; each ends where it fails."""
    clone = folder / "wishbone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    environment = environment_of_a_newcomer(folder / "venv")
    (block,) = blocks("Train on your own pairs", "sh")
    commands = [["bash", "-eu", "-o", "pipefail", "-c", line] for line in shell_lines(block)]
    install = next(command for command in commands if "pip install" in command[-1])
    steps: list[dict[str, Any]] = []
    for path in paths:
        whole = [*commands, *AFTERWARDS]
        if path != README:
            (clone / path).write_text(SHAPES[path], encoding="utf-8", newline="")
            whole = [*([] if README in paths else [install]), *own_pairs(path)]
        steps += _walked(path, whole, clone, environment)
    left = [name for path in paths for name in (LEFT if path == README else (f"{Path(path).stem}-ollama/Modelfile",))]
    missing = [name for name in left if not (clone / name).is_file()]
    sound = not missing and all(step["sound"] for step in steps)
    seconds = round(sum(step["seconds"] for step in steps))
    return circumstances("soak.newcomer") | {"sound": sound, "missing": missing, "seconds": seconds, "steps": steps}


def _walked(path: str, commands: list[list[str]], clone: Path, environment: dict[str, str]) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    for command in commands:
        began = time.monotonic()
        done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
        shown = command[-1].splitlines()[0] if command[0] == "bash" else " ".join(command)
        seconds = round(time.monotonic() - began, 1)
        sound = done.returncode in ((0, 1) if "check" in command else (0,)) and "Traceback" not in done.stderr
        steps.append({"path": path, "command": shown, "status": done.returncode, "sound": sound, "seconds": seconds})
        print(f"{seconds:7.1f} s  status {done.returncode}  {shown}", flush=True)
        if not sound:
            print(done.stdout, done.stderr, file=sys.stderr)
            break
    return steps


def main() -> int:
    """Read the command line and walk; the exit status is 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the file to write")
    paths = [README, *SHAPES]
    parser.add_argument("--only", nargs="+", choices=paths, default=paths, help="these paths")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="newcomer-") as folder:
        found = walk(Path(folder), options.only)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(not found["sound"])


if __name__ == "__main__":
    sys.exit(main())
