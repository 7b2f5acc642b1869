"""Processes of one run must have been given the same, or each would train something else and none would notice.

Machines read their own configuration and data and have their own libraries. Only gradients are exchanged: with
another learning rate on one machine its copy of the adapter drifts away, with another number of batches all wait for
ever. So before a run does anything that takes them all, they exchange what they were given as short texts, and compare.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainingArguments

from wishbone.errors import RequestError
from wishbone.trainer.fingerprint import settings_of, versions

PACE = ("max_steps", "num_train_epochs", "per_device_eval_batch_size", "eval_on_start", "gradient_accumulation_steps")
"""Arguments that change no result and yet decide how often processes meet; so do those of `PACE_KINDS`."""
PACE_KINDS = ("eval_strategy", "eval_steps", "eval_delay", "save_strategy", "save_steps", "guard")
SHOWN = 60
"""Characters of a value that are shown."""


def refuse_differences(given: Mapping[str, Any]) -> None:
    """Refuse a run whose processes were given different things; all of them must call, and all raise.

    Args:
        given: what this process has, by names that tell a user what it is.

    Raises:
        RequestError: with each name that differs, and what the processes have.
    """
    own = {name: value if isinstance(value, str) else json.dumps(value, default=str) for name, value in given.items()}
    every: list[dict[str, str]] = gather_object([own])
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


def libraries() -> dict[str, str]:
    """Return the versions that all processes must have, by library."""
    return {f"version of {name}": number for name, number in versions().items() if name != "device"}


def arguments_given(args: TrainingArguments) -> dict[str, Any]:
    """Return the arguments that decide a run's result, and those that decide when its processes meet."""
    values = args.to_dict()
    pace = {name: values[name] for name in values if name in PACE or name.startswith(PACE_KINDS)}
    return {**settings_of(args, 1), **pace}
