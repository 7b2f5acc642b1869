"""Where a model goes and in which number format: the device and dtype of this process."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from wishbone.errors import RequestError, counted

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def on_device(place: torch.device) -> AbstractContextManager[Any]:
    """Context in which a GPU is the current one, where Triton launches kernels whatever their tensors' device is."""
    return torch.cuda.device(place) if place.type == "cuda" else nullcontext()


def refuse_shared_gpus(processes: int) -> None:
    """Refuse more processes than PyTorch sees GPUs, of which each process needs one of its own; on CPUs none is needed.

    Args:
        processes: of this machine; all of them see the same GPUs.

    Raises:
        RequestError: there are GPUs, and fewer.
    """
    here = torch.cuda.device_count()
    if 0 < here < processes:
        raise RequestError(
            f"{processes} processes on this machine need a GPU each, and PyTorch sees {counted(here, 'GPU')}; start "
            f"{here} (--gpus {here}, torchrun --nproc-per-node {here}), or see whether CUDA_VISIBLE_DEVICES hides GPUs"
        )


def choose_device(device: str | torch.device | None) -> torch.device:
    """Return the device asked for; by default this process's GPU if there is one, else the CPU.

    A process's GPU is the one with its local rank among those that it sees, as in accelerate: a scheduler that shows
    each process one GPU makes that the first.

    Raises:
        RequestError: a GPU was asked for and there is none, or torchrun started more processes than there are GPUs.
    """
    if device is not None:
        chosen = torch.device(device)
        if chosen.type == "cuda" and not torch.cuda.is_available():
            raise RequestError(f"device {str(device)!r} was asked for and PyTorch sees no GPU; leave the device out")
        return chosen
    if torch.cuda.is_available():
        if "TORCHELASTIC_RUN_ID" in os.environ:
            refuse_shared_gpus(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype asked for; "auto" is as for `load_model`: a GPU that only emulates bfloat16 gets float16."""
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    if dtype == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    if dtype not in DTYPES:
        raise RequestError(f"dtype {dtype!r} is not one to load a model in; use auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]
