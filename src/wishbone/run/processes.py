"""One run in several processes, as `torchrun` starts them: the first one owns the run directory, the others follow."""

from __future__ import annotations

import os
from pathlib import Path


def is_first_process() -> bool:
    """Whether this process is the only one of its run or the first, from what launchers put into the environment."""
    return int(os.environ.get("RANK") or 0) == 0


def agreed_directory(directory: Path | None) -> Path:
    """Return the first process's directory in every process; all must call this."""
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        import torch
        from accelerate import PartialState
        from accelerate.utils import broadcast_object_list

        PartialState(cpu=not torch.cuda.is_available())
        (directory,) = broadcast_object_list([directory])
    assert directory is not None, "the first process has claimed one"
    return directory
