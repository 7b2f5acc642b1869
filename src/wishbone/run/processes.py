"""One run in several processes, as `torchrun` starts them: the first one owns the run directory, the others follow."""

from __future__ import annotations

import os
from pathlib import Path

from wishbone.errors import RequestError

NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables beside WORLD_SIZE without which a process trains alone, whatever WORLD_SIZE says."""
STARTERS = {"SLURM_STEP_NUM_TASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpiexec"}
"""Programs that start processes which know nothing of each other, by the variable with their number."""


def refuse_to_train_apart() -> None:
    """Refuse one of several processes if each of them would train alone into the same directory.

    Raises:
        RequestError: WORLD_SIZE is set by hand, or in part; or a scheduler started the same command several times.
    """
    if (count := _number("WORLD_SIZE")) > 1:
        missing = [name for name in NEEDED if not os.environ.get(name)]
        if missing:
            raise RequestError(
                f"WORLD_SIZE is {count}, so this is one of several processes, but {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not set, and each process would train alone. torchrun, "
                "accelerate launch and wishbone train --gpus N (--processes N) set all of them; to train in one "
                "process, unset WORLD_SIZE"
            )
        return
    for name, program in STARTERS.items():
        if (count := _number(name)) > 1:
            raise RequestError(
                f"{program} started this command {count} times ({name}), and each would train all of it. Start it once "
                f"a machine with --gpus all --nodes N --meet-at HOST (docs/scale.md has a Slurm script), or let "
                f"{program} start torchrun"
            )


def _number(name: str) -> int:
    text = os.environ.get(name) or "1"
    if not text.isdecimal():
        raise RequestError(
            f"the environment variable {name} is {text!r:.40}, and it is a number of processes; unset it"
        )
    return int(text)


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
