"""Kernels are tried before they are trusted: values and gradients beside PyTorch's form, once for each kind of call.

A compiler, a driver or a GPU that this project never saw may make something else of a kernel. So the first call of a
kind (sizes, dtypes, device) runs a short made-up row both ways. Where they differ by more than rounding, or the GPU has
too little shared memory, PyTorch's form runs instead, and one line says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Relative difference in the 2-norm that rounding explains; errors of a kernel are far larger."""

Op = Callable[[Sequence[Tensor]], Tensor]

logger = logging.getLogger(__name__)
_found: dict[object, bool] = {}


def kernel_is_right(name: str, kind: object, kernel: Op, reference: Op, inputs: Callable[[], Sequence[Tensor]]) -> bool:
    """Return whether a kernel gives what PyTorch gives, tried once for each kind.

    Args:
        name: what is computed, for the line that says that it is not right.
        kind: what calls have in common: sizes, dtypes, device.
        kernel, reference: both forms.
        inputs: makes small inputs of that kind; those that require a gradient get one compared.
    """
    key = (name, kind)
    if key not in _found:
        difference = _difference(kernel, reference, inputs())
        _found[key] = difference is None
        if difference is not None:
            logger.warning("%s runs in PyTorch, not by the kernel that comes with Wishbone: %s.", name, difference)
    return _found[key]


def _difference(kernel: Op, reference: Op, inputs: Sequence[Tensor]) -> str | None:
    """How the kernel differs, in words, or None."""
    from triton.runtime.errors import OutOfResources

    results = []
    with torch.enable_grad(), torch.autocast(inputs[0].device.type, enabled=False):
        for op in (reference, kernel):
            leaves = [one.detach().clone().requires_grad_(one.is_floating_point()) for one in inputs]
            try:
                out = op(leaves)
            except OutOfResources:
                return "this GPU has too little shared memory for it"
            upstream = torch.arange(out.numel(), dtype=torch.float32, device=out.device).mul(0.7).cos()
            upstream = upstream.to(inputs[0].dtype).to(out.dtype).view(out.shape)
            results.append([out.detach(), *torch.autograd.grad(out, leaves, upstream)])
    tolerance = ROUNDING[inputs[0].dtype]
    for own, got in zip(*results, strict=True):
        relative = float((got.double() - own.double()).norm() / own.double().norm().clamp_min(1e-30))
        if got.shape != own.shape or not relative <= tolerance:
            return (
                f"on this GPU its values or gradients differ by {relative:.0e}, and rounding explains {tolerance:.0e}"
            )
    return None
