"""The command that serves a run with vLLM: a whole model, or the adapter on the model that it was trained on."""

from __future__ import annotations

import shlex
from pathlib import Path

from wishbone.errors import RequestError
from wishbone.result.base_name import base_name
from wishbone.result.finished_run import FinishedRun

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Largest ranks of adapters that vLLM can be started with (`MaxLoRARanks` of its config/lora.py, version 0.32)."""


def vllm_command(run: FinishedRun, merged: Path | None) -> tuple[str, str | None]:
    """Return the command that serves a run with vLLM, and a note.

    Args:
        run: the run.
        merged: where it was merged to, or None to serve its adapter on the base model.

    Raises:
        RequestError: vLLM has no base model to put the adapter on.
    """
    name = shlex.quote(run.path.absolute().name)
    if merged is not None or not run.is_adapter:
        directory = (merged or run.weights).absolute()
        return f"vllm serve {shlex.quote(str(directory))} --served-model-name {name}", None
    base = base_name(run.config.model)
    model = base.hub_id or run.config.model.name
    if base.hub_id is None:
        if model.endswith(".gguf"):
            raise RequestError(
                f"vLLM puts no adapter on {model!r}; add --merged DIR, and the command is for that model"
            )
        model = str(Path(model).expanduser().absolute())
    served = adapter_served(run.config.adapter.rank, run.path.absolute().name, str(run.weights.absolute()))
    if served is None:
        raise RequestError(f"vLLM takes adapters up to rank {RANKS[-1]}, and this one has more; add --merged DIR")
    note = None if base.note is None else f"{base.note}; --merged DIR gives exactly what was trained"
    return f"vllm serve {shlex.quote(model)} {served}", note


def adapter_served(rank: int, name: str, place: str) -> str | None:
    """Return the flags of `vllm serve` that put an adapter on a model, or None where its rank is too large.

    Args:
        rank: of the adapter.
        name: by which requests ask for it.
        place: a directory, or a repository on the hub.
    """
    largest = next((largest for largest in RANKS if largest >= rank), None)
    if largest is None:
        return None
    return f"--enable-lora --max-lora-rank {largest} --lora-modules {shlex.quote(f'{name}={place}')}"
