"""How threads of this process wait for each other: asleep, not spinning.

PyTorch shares out a CPU operation to as many threads as there are cores (OpenMP), and the operation ends with its
slowest thread. By default the others spin meanwhile. Where another program uses one of the cores, they take from the
slowest thread the time that it needs: on two cores a step then took 3.0 times as long, and 1.9 times with threads that
sleep (`OMP_WAIT_POLICY=PASSIVE`, OpenMP 5.2, section 21.7). On cores that are free a step takes the same time
(docs/log.md). The OpenMP library reads its settings when PyTorch loads it.
"""

from __future__ import annotations

import os
import sys

WAIT_SETTING = "OMP_WAIT_POLICY"
OTHER_NAMES = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Environment variables with which somebody chose how long threads spin: of GNU's library and of LLVM's and Intel's."""


def let_waiting_threads_sleep() -> bool:
    """Ask OpenMP for threads that sleep while they wait; return whether this call asked for them.

    A setting in the environment stays as it is. After the import of PyTorch it is too late.
    """
    if {WAIT_SETTING, *OTHER_NAMES} & os.environ.keys() or "torch" in sys.modules:
        return False
    os.environ[WAIT_SETTING] = "PASSIVE"
    return True
