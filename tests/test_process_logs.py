"""What is left out of the log: other processes' copies of a line, bitsandbytes' advice; nothing else is."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from wishbone.process_logs import BEGINS, LOGGER, OF_ONE_PROCESS, hide_kernel_advice, let_first_process_speak


@pytest.mark.parametrize("rank", [None, "0", "1"])
def test_the_first_process_speaks_and_others_of_themselves(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, rank: str | None
) -> None:
    if rank is None:
        monkeypatch.delenv("RANK", raising=False)
    else:
        monkeypatch.setenv("RANK", rank)
    for name in OF_ONE_PROCESS:
        monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)
        monkeypatch.setattr(logging.getLogger(name), "filters", [])
    let_first_process_speak()
    let_first_process_speak()
    for name in ("wishbone.trainer.trainer", "wishbone.engine.oom_retry"):
        logging.getLogger(name).warning("from %s", name.rpartition(".")[2])
    of_all, of_one = "from trainer", "from oom_retry"
    assert caplog.messages == ([f"process 1: {of_one}"] if rank == "1" else [of_all, of_one])


def test_a_level_that_a_script_has_set_stays(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("RANK", "1")
    with caplog.at_level("INFO", "wishbone"):
        let_first_process_speak()
        logging.getLogger("wishbone.trainer.trainer").info("said")
    assert caplog.messages == ["said"]


def test_one_line_is_left_out_and_the_others_stay(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger(LOGGER)
    hide_kernel_advice()
    hide_kernel_advice()
    assert len(logger.filters) == 1
    logger.addHandler(caplog.handler)  # bitsandbytes, once imported, keeps its lines from the root's handlers
    try:
        with caplog.at_level("WARNING", LOGGER):
            logger.warning(f"{BEGINS} from kernels-community: %s", "no module")
            logger.warning("Failed to load something else")
    finally:
        logger.removeHandler(caplog.handler)
    assert set(caplog.messages) == {"Failed to load something else"}


@pytest.mark.long
def test_a_script_that_loads_bitsandbytes_through_wishbone_is_not_advised() -> None:
    pytest.importorskip("bitsandbytes")
    program = "from wishbone import FastLanguageModel; import bitsandbytes"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and BEGINS not in done.stderr
