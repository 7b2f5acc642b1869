"""What the command line sets for the libraries beneath it."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
from forked import Forked

from wishbone.cli.libraries import settle_libraries

PROGRAM = """
import json, logging, os
from wishbone.cli.libraries import settle_libraries
settle_libraries()
settle_libraries()
own = logging.getLogger("wishbone")
print(json.dumps([dict(os.environ), own.propagate, len(own.handlers), logging.getLogger().propagate]))
"""
SET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "true",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
}


def settled(given: dict[str, str]) -> tuple[dict[str, str], bool, int, bool]:
    """Environment and loggers after a program settled the libraries, its output going into a pipe."""
    clean = {name: value for name, value in os.environ.items() if name not in SET}
    child = Forked(lambda: exec(PROGRAM), Path.cwd(), clean | given)
    environment, propagates, handlers, root_propagates = json.loads(child.communicate()[0])
    return {name: environment[name] for name in SET}, propagates, handlers, root_propagates


def test_libraries_are_quiet_in_a_pipe_and_notes_are_printed_once() -> None:
    assert settled({}) == (SET, False, 1, True)


@pytest.mark.slow
@pytest.mark.parametrize("name", SET)
def test_settings_of_the_user_stay(name: str) -> None:
    assert settled({name: "of the user"})[0] == SET | {name: "of the user"}


def test_a_text_is_said_once_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    own = logging.getLogger("wishbone")
    before = own.handlers[:]
    own.handlers.clear()
    try:
        for _ in range(2):  # two commands of one process
            settle_libraries()
            for text in ("one", "one", "two"):
                own.warning(text)
    finally:
        own.handlers[:] = before
    assert [line.split()[-1] for line in capsys.readouterr().err.splitlines()] == ["one", "two"] * 2
