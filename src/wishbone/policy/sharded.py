"""A model whose parameters FSDP2 has divided over processes (`torch.distributed.fsdp.fully_shard`).

Each unit of such a model (a layer, the embedding, the head with the last norm, the rest) gathers its parameters when
its module is called, drops them afterwards, gathers them again when the backward pass comes to the module's output,
and adds up their gradients over processes. The step calls a model in parts: the decoder, then a product with the
head's weight. So the unit around all others and that of the head are called here with something else as their
`forward`, for as long as a pass lasts, and their hooks run as in any other call.

FSDP looks through the arguments and outputs of its modules for tensors. It must not see a `Lockstep`, which is no
tensor to PyTorch's C++ code. So hooks around FSDP's show it the policy's tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from wishbone.fused.lockstep import rejoined, tensors_of

Result = TypeVar("Result")


class ShardedCalls:
    """Runs functions as calls of the sharded modules of a model, or just runs them where nothing is sharded.

    Args:
        model: perhaps with adapters; each Policy of it has its own.
        head: the output embedding.
    """

    def __init__(self, model: nn.Module, head: nn.Module | None) -> None:
        self._root = model if isinstance(model, FSDPModule) else None
        self._head = head if isinstance(head, FSDPModule) else None
        for module in model.modules() if self._root is not None else ():
            if isinstance(module, FSDPModule) and not _ReferenceHidden.on(module):
                _ReferenceHidden(module)

    @property
    def sharded(self) -> bool:
        """Whether the model is sharded."""
        return self._root is not None

    @property
    def gathered_dtype(self) -> torch.dtype | None:
        """Dtype in which FSDP gathers weights; None where they keep their own."""
        return None if self._root is None else self._root._get_fsdp_state()._mp_policy.param_dtype

    def is_root(self, module: nn.Module) -> bool:
        """Whether a module is the sharded one around all others; within `as_root` it is being called already."""
        return module is self._root

    def as_root(self, compute: Callable[[], Result]) -> Result:
        """Return what `compute` returns: tensors, or objects and tuples of tensors; all its work is one pass."""
        return _called(self._root, compute)

    def as_head(self, compute: Callable[[], Result]) -> Result:
        """Return what `compute` returns, which reads the head's weight; once in a pass, within `as_root`."""
        return _called(self._head, compute)


def _called(module: nn.Module | None, compute: Callable[[], Result]) -> Result:
    """Return what `compute` returns as the forward of a module; FSDP sees its tensors as that module's output."""
    if module is None:
        return compute()
    own, found = vars(module), list[Result]()

    def forward(_: None) -> list[Tensor]:
        found.append(compute())
        return _tensors(found[0])

    missing = object()
    before = own.get("forward", missing)
    own["forward"] = forward
    try:
        module(None)  # on GPUs FSDP moves the arguments of a root, and cannot where there are none
    finally:
        if before is missing:
            del own["forward"]
        else:
            own["forward"] = before
    return found[0]  # not the module's output, which FSDP may have rounded


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return tensors_of([result], "policy")  # type: ignore[no-any-return]
    parts = result if isinstance(result, tuple | list) else vars(result).values()
    return [tensor for part in parts if part is not None for tensor in _tensors(part)]


class _ReferenceHidden:
    """Hooks of one module around FSDP's: only the policy's tensor of a `Lockstep` is there while FSDP's run."""

    def __init__(self, module: nn.Module) -> None:
        self._hidden: list[Any] = []
        module.register_forward_pre_hook(self._split_inputs, prepend=True, with_kwargs=True)
        module.register_forward_pre_hook(self._join_inputs, with_kwargs=True)
        module.register_forward_hook(self._split_output, prepend=True)
        module.register_forward_hook(self._join_output)

    @staticmethod
    def on(module: nn.Module) -> bool:
        """Whether a module has them."""
        return any(
            isinstance(getattr(hook, "__self__", None), _ReferenceHidden) for hook in module._forward_hooks.values()
        )

    def _split_inputs(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        self._hidden.append((args, kwargs))
        return tensors_of(args, "policy"), tensors_of(kwargs, "policy")

    def _join_inputs(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        return rejoined((args, kwargs), self._hidden.pop())

    def _split_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        self._hidden.append(output)
        return tensors_of(output, "policy")

    def _join_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        return rejoined(output, self._hidden.pop())
