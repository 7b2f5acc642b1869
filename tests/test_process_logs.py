"""bitsandbytes' advice to install kernels is left out; whatever else it says is not."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from wishbone.process_logs import BEGINS, LOGGER, hide_kernel_advice


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
