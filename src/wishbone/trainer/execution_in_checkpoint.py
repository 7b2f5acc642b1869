"""How rows were computed, as part of a checkpoint, so that a run resumed on the same machine computes them alike.

`token_budget: auto` and the activations that are kept follow from memory that is free when a run begins. Rows of
another length round differently. So each process records its `Execution` beside the weights, with the device and what
the settings asked for. Where these are the same, it is taken and nothing is measured; otherwise one line says that rows
are measured again.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from wishbone.data.json_text import parse_json
from wishbone.engine.execution import Execution, PaddedTo, Room
from wishbone.errors import one_line, some_of
from wishbone.strict_json import read_spelled, spelled

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """What decides about the execution of a process, besides the memory that is free.

    Attributes:
        device: name and bytes of memory of the device.
        settings: arguments of the trainer by name.
    """

    device: str
    settings: dict[str, Any]

    @classmethod
    def of(cls, args: TrainingArguments, device: torch.device, processes: int) -> Asked:
        """Return it for a process that computes on `device`."""
        if device.type == "cuda":
            found = torch.cuda.get_device_properties(device)
            name = f"{found.name}, {found.total_memory} bytes"
        else:
            name = device.type
        names = ("token_budget", "activations", "cuda_graphs", "gradient_checkpointing", "per_device_train_batch_size")
        return cls(name, {name: str(getattr(args, name, None)) for name in names} | {"processes": str(processes)})


@dataclass(frozen=True)
class Recorded:
    """What a checkpoint holds.

    Attributes:
        execution: without graphs, which are recordings of one process.
        padded: the lengths that rows were padded to for their graphs; None where it had none.
    """

    execution: Execution
    padded: PaddedTo | None


def write_execution(checkpoint: Path, process: int, execution: Execution, asked: Asked) -> None:
    """Add the execution of a process to a checkpoint that is being written.

    Raises:
        OSError: it cannot be written.
    """
    graphs = execution.graphs
    padded = None if graphs is None else {"lengths": graphs.lengths, "worth": graphs.worth}
    recorded = asdict(replace(execution, graphs=None)) | {"graphs": padded}
    content = {"asked": asdict(asked), "execution": spelled(recorded)}
    (checkpoint / _name(process)).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_execution(checkpoint: Path, process: int, asked: Asked) -> Recorded | None:
    """Return the execution to resume with, or None where rows have to be measured.

    A line says why rows are measured
    again, except for checkpoints of version 0.1.0, of transformers and of TRL, which record nothing.
    """
    file = checkpoint / _name(process)
    try:
        content = parse_json(file.read_bytes())
        before, fields = Asked(**content["asked"]), read_spelled(content["execution"])
        room = None if fields["room"] is None else Room(**fields["room"])
        padded = PaddedTo(tuple(fields["graphs"]["lengths"]), fields["graphs"]["worth"]) if fields["graphs"] else None
        recorded = Recorded(Execution(**{**fields, "room": room, "graphs": None}), padded)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read (%s), so rows are measured again.", file, one_line(error))
        return None
    if before == asked:
        return recorded
    now = {"device": asked.device, **asked.settings}
    changed = [
        f"{name} was {was} and is {now.get(name)}"
        for name, was in {"device": before.device, **before.settings}.items()
        if now.get(name) != was
    ]
    logger.warning(
        "Rows are measured again, because %s: results may differ in rounding from an uninterrupted run.",
        some_of(changed),
    )
    return None


def _name(process: int) -> str:
    return f"execution-{process}.json"
