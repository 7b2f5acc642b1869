"""Kernels are tried before they are trusted: values and gradients beside PyTorch's form, once for each kind of call.

A compiler, a driver or a GPU that this project never saw may make something else of a kernel. So the first call of a
kind (sizes, dtypes, device) runs a short synthetic row both ways. Where they differ by more than rounding, or the GPU
has too little shared memory, PyTorch's form runs instead, and one line says so. A scan has a dozen kernels, so before
that they are compiled several at once (`compiled_ahead.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wishbone.ops.compiled_ahead import can_compile_ahead, handed_over, hands_over

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

    try:
        if can_compile_ahead(inputs[0].device) and not hands_over():
            with handed_over():
                _results(kernel, inputs)
        results = [_results(op, inputs) for op in (reference, kernel)]
    except OutOfResources:
        return "this GPU has too little shared memory for it"
    tolerance = ROUNDING[inputs[0].dtype]
    for own, got in zip(*results, strict=True):
        relative = float((got.double() - own.double()).norm() / own.double().norm().clamp_min(1e-30))
        if got.shape != own.shape or not relative <= tolerance:
            return (
                f"on this GPU its values or gradients differ by {relative:.0e}, and rounding explains {tolerance:.0e}"
            )
    return None


def _results(op: Op, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The output of an op and its gradients by the inputs.

    What it saves is its own. Within a layer that is recomputed, hooks would take it for the layer's, and the
    recomputation, in which nothing is tried again, would end in an error.
    """
    with (
        torch.enable_grad(),
        torch.autocast(inputs[0].device.type, enabled=False),
        torch.autograd.graph.saved_tensors_hooks(_unchanged, _unchanged),
    ):
        leaves = [one.detach().clone().requires_grad_(one.is_floating_point()) for one in inputs]
        out = op(leaves)
        upstream = torch.arange(out.numel(), dtype=torch.float32, device=out.device).mul(0.7).cos()
        upstream = upstream.to(inputs[0].dtype).to(out.dtype).view(out.shape)
        return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def _unchanged(saved: Tensor) -> Tensor:
    return saved
