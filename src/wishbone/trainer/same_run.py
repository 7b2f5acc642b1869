"""Processes of one run must have been given the same, or each would train something else and none would notice.

Machines read their own configuration and data and have their own libraries. Only gradients are exchanged: with
another learning rate on one machine its copy of the adapter drifts away, with another number of batches all wait for
ever. So before a run does anything that takes them all, they exchange what they were given as short texts, and compare.

The texts go through the store at which the processes met, by network alone: no GPU takes part, no backend is chosen,
and a process that waits hears signals. It waits for half an hour at most, for as long as another one may read data, and
no longer than until another one has failed.
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
"""Seconds for which others are waited for, after which that is said, and between two looks."""
FAILED = "failed"
"""Key of the store: the process that failed, and why."""

logger = logging.getLogger(__name__)


def compare_processes(args: TrainingArguments, pairs: Any, processes: int) -> None:
    """Refuse a training whose processes were given different arguments or pairs, or do not know of each other.

    Args:
        args: of the trainer.
        pairs: that all processes must have, tokenized; None where each may have its own.
        processes: as accelerate counts them.

    Raises:
        RequestError: they differ; or there is a process group, and accelerate sees this process alone.
        RunError: another process has failed, or does not come.
    """
    if processes > 1:
        data = {} if pairs is None else {"training data": pairs_facts(pairs)}
        refuse_differences({**arguments_given(args), **data})
        return
    group = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if group > 1:
        raise RequestError(
            f"this is one of {group} processes of a group, and accelerate takes it for the only one: LOCAL_RANK is not "
            "set, and each would train alone. Set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in each "
            "process before anything of accelerate or transformers is constructed, or start the script with torchrun"
        )


def refuse_differences(given: Mapping[str, Any]) -> None:
    """Refuse a run whose processes were given different things; all of them must call, and all raise.

    Args:
        given: what this process has, by names that tell a user what it is.

    Raises:
        RequestError: with each name that differs, and what the processes have.
        RunError: another process has failed, or does not come.
    """
    own = {name: value if isinstance(value, str) else json.dumps(value, default=str) for name, value in given.items()}
    every = from_all(own)
    lines = []
    for name in sorted({name for one in every for name in one}):
        values = [one.get(name, "not there") for one in every]
        if len(set(values)) > 1:
            other = next(rank for rank, value in enumerate(values) if value != values[0])
            lines.append(f"{name} is {values[0]:.{SHOWN}} in process 0 and {values[other]:.{SHOWN}} in process {other}")
    if lines:
        raise RequestError(
            "processes of this run were given different things:\n"
            + "".join(f"  - {line}\n" for line in lines)
            + "Give all of them the same: one configuration, one version of each library, and data and model on a file "
            "system that all machines see, or equal copies."
        )


def from_all(own: dict[str, str]) -> list[dict[str, str]]:
    """Return the texts of each process, in the order of their ranks; all of them must call.

    Raises:
        RunError: another process has failed, or does not come.
    """
    if not torch.distributed.is_initialized():
        return [own]
    store, rank = _meeting_place(), torch.distributed.get_rank()
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
                f"{_missing(store, keys)} of this run did not come within {PATIENCE / 60:.0f} minutes; see what it "
                "says, and whether it still runs"
            )
        time.sleep(PAUSE)
    return [json.loads(store.get(key)) for key in keys]


@contextmanager
def failure_told() -> Iterator[None]:
    """Context in which a failure of this process is told to those that wait for it, on other machines too."""
    try:
        yield
    except Exception as error:
        if torch.distributed.is_initialized():
            with suppress(RuntimeError):  # of a store that is gone
                text = f"process {torch.distributed.get_rank()} of this run failed: {one_line(error)}"
                _meeting_place().set(FAILED, text)
        raise


def _meeting_place() -> Any:
    """The store at which the processes met, under a name of its own."""
    return PrefixStore("wishbone", torch.distributed.distributed_c10d._get_default_store())


def _missing(store: Any, keys: list[str]) -> str:
    """Name the processes that have not come."""
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
