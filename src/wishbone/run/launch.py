"""Starts the processes of a run, one for each GPU, and waits for them.

PyTorch's elastic agent does the work, as in `torchrun`: it finds a free port, tells each process its rank, ends all of
them when one fails, and passes signals on. The run is the same as with `torchrun --module wishbone train ...`.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import uuid
from collections.abc import Sequence

from wishbone.errors import RequestError, RunError, one_line
from wishbone.planning.hardware import read_cpu

STARTED_AS = "WISHBONE_STARTED_AS"
"""Environment variable: the options with which `wishbone train` starts the same processes again."""

PORT = 29400
"""Where nodes meet if no port is named; torchrun's own default."""


def is_launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


def gpus_asked_for(asked: str) -> int:
    """Return how many GPUs `--gpus` names, a number or `all`.

    Raises:
        RequestError: it is neither, or this machine has fewer.
    """
    import torch

    here = torch.cuda.device_count()
    if asked != "all" and not (asked.isdecimal() and int(asked)):
        raise RequestError(f"--gpus {asked!r:.40}: give a number from 1 on, or all")
    if not here:
        raise RequestError(
            f"--gpus {asked}: PyTorch sees no GPU on this machine{_hidden()}; without --gpus the run uses the CPU, and "
            "`wishbone doctor` says what is missing"
        )
    number = here if asked == "all" else int(asked)
    if number > here:
        raise RequestError(f"--gpus {asked}: PyTorch sees {here} here{_hidden()}; give at most that many, or all")
    return number


def _hidden() -> str:
    """What may hide GPUs from PyTorch, in words; nothing where nothing may."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if seen is None else f", where CUDA_VISIBLE_DEVICES is {seen!r:.40}"


def choose_one_gpu() -> int:
    """Let this process see the first GPU alone, where it sees several; return how many it saw.

    One process with several GPUs would copy the model to all of them for each batch (`nn.DataParallel`), which TRL
    refuses. To be called before CUDA is initialized.
    """
    import torch

    here = torch.cuda.device_count()
    if here > 1 and not is_launched():
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return here


def launch(
    command: Sequence[str],
    *,
    processes: int,
    nodes: int = 1,
    meet_at: str | None = None,
    module: str = "wishbone",
) -> int:
    """Run `wishbone` with arguments in several processes, and return the exit status of the run.

    Args:
        command: arguments of `wishbone`.
        processes: how many on this machine.
        nodes: machines of the run; each calls this.
        meet_at: HOST[:PORT] of one of the machines, where all of them meet; needed for several.
        module: what each process runs, as `python -m` does.

    Raises:
        RequestError: there are several nodes and nowhere to meet, or that is no place on a network; or there are fewer
            GPUs than processes.
        RunError: a signal ended one of the processes, or the nodes did not meet.
    """
    meeting = _meeting(meet_at)
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from wishbone.model.device import refuse_shared_gpus

    refuse_shared_gpus(processes)
    if nodes > 1 and meet_at is None:
        raise RequestError(
            f"--nodes {nodes}: name one of the machines with --meet-at HOST[:{PORT}], the same on all of them"
        )
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # each process says itself why it ended
    os.environ[STARTED_AS] = f"--processes {processes}" if nodes == 1 else ""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, read_cpu().cores // processes)))
    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=processes,
        run_id=str(uuid.uuid4()) if meet_at is None else "wishbone",
        rdzv_backend="c10d",
        rdzv_endpoint=meeting,
        max_restarts=0,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )
    try:
        elastic_launch(config, sys.executable)("-m", module, *command)
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        if first.exitcode > 0:
            return first.exitcode
        ended = signal.Signals(-first.exitcode).name
        hint = "; the system does that where memory runs out" if ended == "SIGKILL" else ""
        raise RunError(f"process {rank} of the run was ended by {ended}{hint}. The others were ended, too") from None
    except RendezvousError as error:
        raise RunError(
            f"the {nodes} machines did not meet at {meeting} ({one_line(error)}); start the same command on each of "
            "them, and see that they reach that port"
        ) from None
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def _meeting(meet_at: str | None) -> str:
    """HOST:PORT of a meeting place; a free port of this machine where none is named."""
    if meet_at is None:
        return "localhost:0"
    host, port = meet_at.rsplit(":", 1) if ":" in meet_at else (meet_at, str(PORT))
    if not re.fullmatch(r"[\w.-]+|\[[\da-fA-F:.]+\]", host) or not (port.isdecimal() and 0 < int(port) < 2**16):
        raise RequestError(f"--meet-at {meet_at!r:.60}: write HOST or HOST:PORT, with a port from 1 to 65535")
    return f"{host}:{port}"
