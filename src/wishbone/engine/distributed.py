"""Several processes: each computes its own pairs, and gradients are reduced once a step.

The step runs the model underneath DistributedDataParallel, so the number of rows may differ between processes: none
waits for another until it has all its gradients. Where each process has a step's loss of its own, the mean over
processes is what DDP computes; where processes share the pairs of one step (`sharing.py`), it is the sum.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def send_float8_as_bytes(model: nn.Module) -> None:
    """Give all processes the first one's float8 weights, and have DDP leave these out of what it sends at the start.

    gloo carries no float8. To be called before DDP is constructed; nothing is done in a process alone.
    """
    if not torch.distributed.is_initialized():
        return
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.dtype in FLOAT8}
    for parameter in named.values():
        torch.distributed.broadcast(parameter.detach().view(torch.uint8), 0)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(named))


def fill_gradients(model: nn.Module) -> None:
    """Give every trainable parameter of a sharded model a gradient, zero where FSDP left none.

    FSDP leaves none in a process that has no rows of a parameter. An optimizer would keep no state of it there, and
    processes that gather the state for a checkpoint would not gather the same.
    """
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def reduce_gradients(model: nn.Module, accelerator: Accelerator, *, mean: bool) -> None:
    """Replace the gradients of all trainable parameters by their mean or sum over processes; absent ones count as zero.

    Dtypes are reduced in the order of their names, which is the same in every process.
    """
    if accelerator.num_processes == 1:
        return
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for dtype in sorted({parameter.dtype for parameter in trainable}, key=str):
        gradients = [p.grad for p in trainable if p.dtype == dtype and p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        if mean:
            flat /= accelerator.num_processes
        for gradient, reduced in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(reduced.view_as(gradient))


def sum_over_processes(value: int, accelerator: Accelerator) -> int:
    """Return the sum of a value over processes."""
    if accelerator.num_processes == 1:
        return value
    total = torch.tensor(value, device=accelerator.device)
    return int(accelerator.reduce(total, "sum").item())
