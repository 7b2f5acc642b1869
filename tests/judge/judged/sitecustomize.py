"""Prepares every Python process of a judged run; Python imports a module of this name by itself at its start.

`judge_with_trl_tests.py` puts this folder on the path, so it also reaches the processes that tests start: `trl dpo`
trains in a child process. JUDGED_TRAINER names whose trainer to use. JUDGED_PRECISION settles the arithmetic on a
machine without a GPU, where TRL refuses its default, bfloat16: "float32", "bfloat16" on the CPU, or "default", which
changes nothing. A process that cannot be prepared ends, so that no unpatched process passes for a patched one.
"""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import ExitStack
from types import TracebackType


def _end(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
    if error is not None:
        traceback.print_exception(error)
        sys.exit(3)


def _settle_precision(precision: str) -> None:
    import torch
    from trl import DPOConfig

    checked = DPOConfig.__post_init__

    def settled(config: DPOConfig) -> None:
        if precision == "float32" and config.bf16 is None and not config.fp16:
            config.bf16 = False
        elif precision == "bfloat16" and not torch.cuda.is_available():
            config.use_cpu = True
        checked(config)

    DPOConfig.__post_init__ = settled


if "JUDGED_TRAINER" in os.environ:
    with ExitStack() as stack:
        stack.push(_end)
        if os.environ["JUDGED_TRAINER"] == "wishbone":
            from wishbone import PatchDPOTrainer

            PatchDPOTrainer()
        _settle_precision(os.environ["JUDGED_PRECISION"])
