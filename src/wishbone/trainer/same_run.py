"""All processes of a run must have the same settings and data; otherwise they train different models unnoticed.

Each machine reads its own configuration and data and has its own libraries. Only gradients are exchanged: with another
learning rate on one machine its copy of the adapter drifts away, with another number of batches all wait forever. So
before a run does anything collective, the processes exchange short descriptions of both and compare them.

The descriptions go through the rendezvous store, over the network alone: they need no GPU and no backend, and a process
that waits still handles signals. It waits for at most half an hour, while others may read data, or until one fails.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch.distributed.distributed_c10d import PrefixStore
from transformers import TrainingArguments

from wishbone.errors import RequestError, RunError, one_line, some_of
from wishbone.trainer.fingerprint import pairs_facts, settings_of, versions

PACE = ("max_steps", "num_train_epochs", "per_device_eval_batch_size", "eval_on_start", "gradient_accumulation_steps")
"""Arguments that change no result and yet decide how often processes meet; so do those of `PACE_KINDS`."""
PACE_KINDS = ("eval_strategy", "eval_steps", "eval_delay", "save_strategy", "save_steps", "guard")
SHOWN = 60
"""Characters of a value that are shown."""
PATIENCE, SAID_AFTER, PAUSE = 1800.0, 60.0, 0.05
"""Seconds: the longest wait for other processes, the wait after which a line says so, and between two polls."""
FAILED = "failed"
"""Key of the store: the process that failed, and why."""

logger = logging.getLogger(__name__)


def compare_processes(args: TrainingArguments, pairs: Any, processes: int) -> None:
    """Refuse a training whose processes were given different arguments or pairs, or are not joined.

    Args:
        args: of the trainer.
        pairs: that all processes must have, tokenized; None where each may have its own.
        processes: as accelerate counts them.

    Raises:
        RequestError: they differ; or there is a process group, and accelerate sees only this process.
        RunError: another process has failed, or does not arrive.
    """
    if processes > 1:
        data = {} if pairs is None else {"training data": pairs_facts(pairs)}
        refuse_differences({**arguments_given(args), **data})
        return
    group = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if group > 1:
        raise RequestError(
            f"this is one of {group} processes of a group, but accelerate sees only this one: LOCAL_RANK is not "
            "set, and each would train alone. Set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in each "
            "process before you construct anything of accelerate or transformers, or start the script with torchrun"
        )


def refuse_differences(given: Mapping[str, Any]) -> None:
    """Refuse a run whose processes were given different things; all of them must call, and all raise.

    Args:
        given: what this process has, by names that users know.

    Raises:
        RequestError: with each name that differs, and what the processes have.
        RunError: another process has failed, or does not arrive.
    """
    own = {name: value if isinstance(value, str) else json.dumps(value, default=str) for name, value in given.items()}
    every = from_all(own)
    lines = []
    for name in sorted({name for one in every for name in one}):
        values = [one.get(name, "absent") for one in every]
        if len(set(values)) > 1:
            other = next(rank for rank, value in enumerate(values) if value != values[0])
            lines.append(f"{name} is {values[0]:.{SHOWN}} in process 0 and {values[other]:.{SHOWN}} in process {other}")
    if lines:
        raise RequestError(
            "the processes of this run have different settings or data:\n"
            + "".join(f"  - {line}\n" for line in lines)
            + "Give all of them the same: one configuration, one version of each library, and data and model on a file "
            "system that all machines see, or equal copies."
        )


def from_all(own: dict[str, str]) -> list[dict[str, str]]:
    """Return the texts of each process, in the order of their ranks; all of them must call.

    Raises:
        RunError: another process has failed, or does not arrive.
    """
    if not torch.distributed.is_initialized():
        return [own]
    store, rank = _rendezvous_store(), torch.distributed.get_rank()
    turn = store.add(f"turn of {rank}", 1)
    keys = [f"{turn} of {other}" for other in range(torch.distributed.get_world_size())]
    store.set(keys[rank], json.dumps(own))
    begun, said = time.monotonic(), False
    while not store.check(keys):
        waited = time.monotonic() - begun
        if store.check([FAILED]):
            raise RunError(store.get(FAILED).decode())
        if waited > SAID_AFTER and not said:
            said = True
            logger.warning("Waiting for %s, for %.0f minutes at most.", _missing(store, keys), PATIENCE / 60)
        if waited > PATIENCE:
            raise RunError(
                f"{_missing(store, keys)} of this run did not arrive within {PATIENCE / 60:.0f} minutes; see its "
                "output, and whether it still runs"
            )
        time.sleep(PAUSE)
    return [json.loads(store.get(key)) for key in keys]


@contextmanager
def failure_announced() -> Iterator[None]:
    """Context in which a failure of this process is reported to those that wait for it, on other machines too."""
    try:
        yield
    except Exception as error:
        if torch.distributed.is_initialized():
            with suppress(RuntimeError):  # of a store that is gone
                text = f"process {torch.distributed.get_rank()} of this run failed: {one_line(error)}"
                _rendezvous_store().set(FAILED, text)
        raise


def _rendezvous_store() -> Any:
    """The rendezvous store of the processes, with a prefix."""
    return PrefixStore("wishbone", torch.distributed.distributed_c10d._get_default_store())


def _missing(store: Any, keys: list[str]) -> str:
    """Name the processes that have not arrived."""
    ranks = [str(rank) for rank, key in enumerate(keys) if not store.check([key])]
    return f"process {some_of(ranks)}"


def libraries() -> dict[str, str]:
    """Return the versions that all processes must have, by library."""
    return {f"version of {name}": number for name, number in versions().items() if name != "device"}


def arguments_given(args: TrainingArguments) -> dict[str, Any]:
    """Return the arguments that decide a run's result, and those that decide when its processes meet."""
    values = args.to_dict()
    pace = {name: values[name] for name in values if name in PACE or name.startswith(PACE_KINDS)}
    return {**settings_of(args, 1), **pace}
