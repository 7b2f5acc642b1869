"""Run directories with damaged files, read as `wishbone report` reads them."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from random import Random

from soak.damage import as_json, damaged_bytes, damaged_value, hostile_value
from soak.trials import Target


@cache
def _sound() -> dict[str, bytes]:
    from fake_run import write_fake_run

    with tempfile.TemporaryDirectory() as place:
        run = write_fake_run(Path(place) / "run", steps=24, every=8)
        return {file.name: file.read_bytes() for file in run.iterdir()}


def write_run(random: Random, directory: Path) -> Path:
    """A run whose files are damaged, hold other values, or are no files."""
    run = directory / random.choice(("run", "a run", "rün\n", "r" * 250, "[red]run"))
    run.mkdir()
    files = dict(_sound())
    for _ in range(random.choice((1, 1, 2, 4))):
        name = random.choice(sorted(files))
        content = files[name]
        match random.randrange(7):
            case 0:
                del files[name]
            case 1 | 2 | 3 if name.endswith(".json"):
                try:
                    files[name] = as_json(damaged_value(json.loads(content), random)).encode()
                except (ValueError, RecursionError):
                    files[name] = as_json(hostile_value(random)).encode()
            case 1 | 2 | 3 if name == "metrics.jsonl":
                lines = content.splitlines(keepends=True)
                spot = random.randrange(len(lines)) if lines else 0
                lines[spot : spot + 1] = [as_json(_other_line(lines[spot : spot + 1], random)).encode() + b"\n"]
                files[name] = b"".join(lines)
            case 4:
                files["error.log"] = random.choice((b"\xff\xfe", b"<script>\x1b[2J" * 9, b"x" * 400_000, b"\0" * 100))
            case _:
                files[name] = damaged_bytes(content, random)
        if not files:
            break
    for name, content in files.items():
        (run / name).write_bytes(content)
    if random.random() < 0.08:
        name = random.choice(
            ("config.yaml", "metrics.jsonl", "summary.json", "answers.json", "error.log", "report.html")
        )
        place = run / name
        place.unlink(missing_ok=True)
        random.choice((place.mkdir, lambda: place.symlink_to(place), lambda: place.symlink_to("/dev/full")))()
    return run


def _other_line(line: list[bytes], random: Random) -> object:
    try:
        return damaged_value(json.loads(line[0]), random)
    except (ValueError, IndexError, RecursionError):
        return hostile_value(random)


def read_run_directory(path: Path) -> None:
    """Write the page and print the result, as `wishbone report` does."""
    import typer

    from wishbone.cli.report import report
    from wishbone.errors import RequestError

    try:
        report(path)
    except typer.Exit as end:
        if end.exit_code != 2:
            raise
        raise RequestError("exit status 2") from end


TARGETS = [Target("run", write_run, read_run_directory, seconds=10.0)]
