"""`wishbone sweep`: a grid of settings, one run after another, with one reference store and one table at the end.

Each run is a process of its own, so that memory is free again and one that fails does not end the others. The
reference's log-probabilities depend on none of the usual settings of a sweep; the first run computes them, and the
others read them. What is done is not done again: the same command continues where it was stopped.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from wishbone.atomic_file import write_text
from wishbone.cli.console import plain, say, screen
from wishbone.cli.grid import OWN, Combination, grid
from wishbone.cli.request import requested
from wishbone.cli.result import result_data
from wishbone.config.document import show, show_path
from wishbone.config.load import load_config
from wishbone.config.run_directory import CONFIG_FILE
from wishbone.config.schema import RunConfig
from wishbone.errors import RequestError, counted
from wishbone.paths import unwritten
from wishbone.report.outcome import in_words
from wishbone.report.run_directory import read_run
from wishbone.run.preflight import check_access
from wishbone.strict_json import without_nan

INTERRUPTED = 130
TABLE = "sweep.json"
SHOWN = {"loss": "Loss", "rewards/accuracies": "Accuracy", "rewards/margins": "Margin"}
"""Held-out metrics of the table."""
OPEN = {*OWN, "output.report_to", "output.answers", "data.template"}
"""Settings of a run that is done which may differ: places, what is logged, and a template that the run has found."""


def sweep(
    config_path: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="File of the runs.", show_default=False)],
    settings: Annotated[
        list[str],
        typer.Argument(
            metavar="SECTION.KEY=V1,V2,...",
            help="Values to combine, with commas between them; a list is written in brackets.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option(help="Directory of the sweep: a run directory for each combination.")] = Path(
        "runs/sweep"
    ),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs, check their settings; train none.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON and nothing else.")] = False,
) -> None:
    """Train every combination of some settings, and compare the runs in one table."""
    with requested():
        combinations = grid(settings)
        configs = _checked(config_path, combinations, output)
        _refuse_other_runs(combinations, configs, output)
        shared = _store(configs, settings, output)
        check_access(
            configs[0].model_copy(update={"output": configs[0].output.model_copy(update={"dir": str(output)})})
        )
    said = f"{counted(len(combinations), 'run')} in {output}"
    say(said + (f", one reference store ({shared})" if shared else ""), marker="sweep: ", style="bold", error=True)
    if dry_run and as_json:
        runs = [{"run": str(output / one.name), "overrides": one.overrides} for one in combinations]
        typer.echo(json.dumps(runs, indent=2))
        return
    if dry_run:
        for at, one in enumerate(combinations, 1):
            say(f"{at}. {' '.join(one.overrides)}", error=True)
        return
    outcomes = {}
    for at, one in enumerate(combinations, 1):
        directory = output / one.name
        if _is_done(directory):
            say(f"{at} of {len(combinations)}, {one.name}: done before", marker="run: ", style="bold green", error=True)
            outcomes[one.name] = 0
            continue
        say(f"{at} of {len(combinations)}, {' '.join(one.overrides)}", marker="run: ", style="bold", error=True)
        outcomes[one.name] = _train(config_path, one, directory, shared)
        if outcomes[one.name] in (INTERRUPTED, 143, 129):
            say("stopped; the same command continues from here", marker="sweep: ", style="bold yellow", error=True)
            break
    rows = [_row(one, output / one.name, outcomes.get(one.name)) for one in combinations]
    table = json.dumps(without_nan(rows), indent=2)
    if as_json:
        typer.echo(table)
    else:
        _print_table(combinations, rows)
    try:
        write_text(output / TABLE, table + "\n")
    except OSError as error:
        say(f"{unwritten(output / TABLE, error)}", marker="note: ", style="bold yellow", error=True)
    else:
        if not as_json:
            watch = f"to look at all of them: wishbone board {shlex.quote(str(output))}"
            say(f"{output / TABLE}; {watch}", marker="table: ", style="bold green")
    if any(outcomes.get(one.name) != 0 for one in combinations):
        raise typer.Exit(next((status for status in outcomes.values() if status), 1))


def _checked(path: Path, combinations: Sequence[Combination], output: Path) -> list[RunConfig]:
    """The configuration of each run; raises the problems of all of them, each once."""
    configs: list[RunConfig] = []
    problems: dict[str, None] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for one in combinations:
            try:
                configs.append(load_config(path, [*one.overrides, f"output.dir={json.dumps(str(output / one.name))}"]))
            except RequestError as error:
                problems |= dict.fromkeys(error.problems)
    if problems:
        raise RequestError(list(problems))
    return configs


def _refuse_other_runs(combinations: Sequence[Combination], configs: Sequence[RunConfig], output: Path) -> None:
    """Refuse a directory whose finished runs had other settings than these: the table would mix the two.

    Raises:
        RequestError: with a sentence for each such run.
    """
    problems = []
    for one, config in zip(combinations, configs, strict=True):
        directory = output / one.name
        if not _is_done(directory):
            continue  # what goes on from a checkpoint is compared by the run itself
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            before = _settings(load_config(directory / CONFIG_FILE))
        now = _settings(config)
        if changed := [name for name in now if name not in OPEN and before.get(name, now[name]) != now[name]]:
            name = changed[0]
            more = f", and {counted(len(changed) - 1, 'other setting')}" if len(changed) > 1 else ""
            problems.append(
                f"{show_path(directory)} is done, with {name}: {show(before[name])} instead of {show(now[name])}{more}"
                "; name another directory with --output, or delete this one"
            )
    if problems:
        raise RequestError(problems)


def _settings(config: RunConfig) -> dict[str, Any]:
    """Settings by their dotted names, as values of JSON."""
    sections = config.model_dump(mode="json").items()
    return {f"{section}.{name}": value for section, fields in sections for name, value in fields.items()}


def _store(configs: Sequence[RunConfig], settings: Sequence[str], output: Path) -> Path | None:
    """The store that all runs share; None where the file says another one, or 8 bits keep none."""
    first = configs[0]
    if first.training.reference_store != "auto" or any(one.model.quantization in ("fp8", "int8") for one in configs):
        return None
    return output.absolute() / "references.sqlite"


def _is_done(directory: Path) -> bool:
    try:
        return read_run(directory).status == "done"
    except RequestError:
        return False


def _train(config_path: Path, one: Combination, directory: Path, store: Path | None) -> int:
    """Train one combination in a process of its own, and return its exit status."""
    words = [*one.overrides, f"output.dir={json.dumps(str(directory))}"]
    words += [f"training.reference_store={json.dumps(str(store))}"] if store else []
    began = (directory / CONFIG_FILE).exists()  # where it ended before its first checkpoint, --resume starts again
    command = [sys.executable, "-m", "wishbone", "train", str(config_path), *words, *(["--resume"] * began)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process, passed_on_to(process):
        try:
            return process.wait()
        except KeyboardInterrupt:  # the terminal sends it to the run, too, which saves a checkpoint
            process.wait()
            return INTERRUPTED


@contextmanager
def passed_on_to(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Context in which SIGTERM and SIGHUP go to a run, which saves a checkpoint; without that it would live on alone.

    One that is ignored, as under nohup, stays ignored. The terminal sends SIGINT to the run itself.
    """

    def pass_on(number: int, _: object) -> None:
        process.send_signal(number)

    before = {
        number: signal.signal(number, pass_on)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _row(one: Combination, directory: Path, status: int | None) -> dict[str, Any]:
    row: dict[str, Any] = {"run": str(directory), "settings": one.varied, "status": "not begun"}
    try:
        found = result_data(read_run(directory))
    except RequestError:
        return row | ({"status": "failed"} if status else {})
    metrics = {name: change["after"] for name, change in found["measured"]["metrics"].items()}
    problems = [finding["title"] for finding in found["findings"] if finding["severity"] == "problem"]
    heldout = "heldout_after" in found["summary"] and found["summary"]["heldout_after"] is not None
    return row | {"status": found["status"], "heldout": heldout, "metrics": metrics, "problems": problems}


def _print_table(combinations: Sequence[Combination], rows: Sequence[dict[str, Any]]) -> None:
    varied = list(combinations[0].varied)
    table = Table()
    for name in varied or ["Run"]:
        table.add_column(name, no_wrap=True)
    for title in SHOWN.values():
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("What stands out", overflow="fold")
    for row in sorted(rows, key=_rank):
        metrics = row.get("metrics", {})
        cells = [_shown(metrics.get(name), percent=name == "rewards/accuracies") for name in SHOWN]
        said = "; ".join(row.get("problems", [])) or ("" if row["status"] == "done" else row["status"])
        own = [plain(row["settings"][name]) for name in varied] or [plain(Path(row["run"]).name)]
        table.add_row(*own, *cells, plain(said))
    screen().print(table)
    pairs = "held-out pairs"
    if not all(row.get("heldout") for row in rows):
        pairs += ", or on training pairs where none are held out"
    say(
        f"Measured on {pairs}; the highest accuracy first. Losses and margins grow with beta: compare them at one beta."
    )


def _rank(row: dict[str, Any]) -> tuple[float, float]:
    metrics = row.get("metrics", {})
    accuracy, loss = metrics.get("rewards/accuracies"), metrics.get("loss")
    return (-accuracy if accuracy is not None else 1.0, loss if loss is not None else float("inf"))


def _shown(value: float | None, *, percent: bool) -> str:
    return "\N{EN DASH}" if value is None else in_words(value, percent=percent)
