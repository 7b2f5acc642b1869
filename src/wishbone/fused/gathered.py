"""Modules of a sharded model whose parameters are read outside of a pass.

FSDP gathers the parameters of a unit when the unit's module is called. A module inside that is called alone, to find
out what it computes, needs its unit gathered first. All processes look at the same modules in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.fsdp import FSDPModule


class GatheredUnits:
    """Gathers the FSDP unit around a module while its parameters are read.

    Args:
        model: sharded or not.
    """

    def __init__(self, model: nn.Module) -> None:
        self._unit: dict[nn.Module, FSDPModule] = {}
        for module in model.modules():  # units further inside come later
            if isinstance(module, FSDPModule):
                self._unit |= dict.fromkeys(module.modules(), module)

    @contextmanager
    def around(self, module: nn.Module) -> Iterator[None]:
        """Context in which the parameters of a module, none of which is a unit itself, are whole."""
        unit = self._unit.get(module)
        if unit is None:
            yield
            return
        unit.unshard()
        try:
            yield
        finally:
            unit.reshard()
