"""Recurrent layers over packed rows: both branches start from the state at their stem's end.

A recurrent layer of transformers projects each token by itself and mixes tokens in one or two functions of its module:
a short causal convolution and a scan. Such a function knows whole sequences only. So the layer runs a copy of its
forward (`rebound_function.py`) in which these names mean functions that know stems and branches (`token_mixers.py`).
The call of the layer says which row it is (`row_layout.py`). Projections, gates and norms are the layer's own code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from wishbone.fused.instance_attributes import InstanceAttributes, slot_of
from wishbone.fused.lockstep import adapters_of_reference, in_lockstep
from wishbone.fused.parts import is_recurrence
from wishbone.fused.rebound_function import names_in, rebound
from wishbone.fused.row_layout import CurrentRow
from wishbone.fused.token_mixers import IN_STEPS, KERNELS, MIXERS, OWN_FORWARDS, linear_attention
from wishbone.ops.chunked_scan import MOST_KEY_DIM
from wishbone.ops.scan_kernels import Library, why_no_kernels

_SCAN = re.compile(r"^(?!use_|.*(recurrent|update|step)).*(scan|delta|inner_fn|rwkv)")
"""Names of functions that mix the tokens of whole sequences; those for single tokens of generation do not run, and
use_... are settings."""


class PrefixRecurrence:
    """Finds the recurrent layers of a model and lets them run over packed rows.

    Args:
        model: a transformers model, with or without adapters. Nothing of it is changed outside of `running()`.

    Attributes:
        covered: recurrent modules that start branches from their stem's state.
        left: why the others do not, by the name of the module.
        in_steps: functions of theirs that run in as many steps as a row needs, so that no two rows run alike.
    """

    def __init__(self, model: nn.Module) -> None:
        self.covered: set[nn.Module] = set()
        self.left: dict[str, str] = {}
        self.in_steps: set[str] = set()
        self._attributes = InstanceAttributes()
        self._row = CurrentRow()
        self._libraries: set[Library] = set()
        if not any(is_recurrence(module) for module in model.modules()):
            return
        for name, layer in model.named_modules():
            if isinstance(layer, GradientCheckpointingLayer):
                inside = [(f"{name}.{n}", one) for n, one in layer.named_modules() if is_recurrence(one)]
                slot = slot_of(layer)
                for recurrent_name, module in inside:
                    self._find(recurrent_name, module, slot is not None)
                if slot is not None and any(module in self.covered for _, module in inside):
                    self._attributes.add(layer, slot, self._row.with_layout_of_call(getattr(layer, slot), layer))
        found = self.covered | {model.get_submodule(name) for name in self.left}
        for name, module in model.named_modules():
            if is_recurrence(module) and module not in found:
                self.left[name] = "they lie outside of the layers that receive the layout of the row"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Context of forward passes over packed rows and of the backward passes that recompute them."""
        with self._attributes.replaced():
            yield

    def slower(self, device: torch.device) -> list[str]:
        """Return for each kind of scan that runs in PyTorch on a GPU why it does not run by kernels, in one line."""
        reasons = [why_no_kernels(library, device) for library in sorted(self._libraries)]
        return [
            f"The scans of recurrent layers run in PyTorch, not by kernels: {reason}." for reason in reasons if reason
        ]

    def _find(self, name: str, module: nn.Module, in_layer: bool) -> None:
        forward = type(module).forward
        slot = slot_of(module)
        if not in_layer or slot is None or not isinstance(forward, FunctionType):
            self.left[name] = "something else has replaced their forward"
            return
        unknown = sorted(one for one in names_in(forward) - MIXERS.keys() if _SCAN.search(one))
        if unknown:
            self.left[name] = f"{unknown[0]} has no form that starts from the state of a stem"
            return
        own_forward = OWN_FORWARDS.get(type(module).__name__)
        copy: Callable[..., Any] | None = (
            rebound(forward, self._ours) if own_forward is None else self._with_scan(own_forward)
        )
        if copy is None:
            self.left[name] = f"{type(module).__name__} mixes tokens in code of its own"
            return
        self.covered.add(module)
        longest = max(getattr(module, name, 0) for name in ("head_k_dim", "ssm_state_size"))
        names = names_in(forward)
        by_library = {
            one for one in names & KERNELS.keys() if longest > MOST_KEY_DIM or one == "chunk_kimi_delta_attention"
        }
        self._libraries.update(KERNELS[one] for one in by_library)
        self.in_steps |= by_library | names & IN_STEPS
        self._attributes.add(module, slot, self._row.with_layout_of_call(MethodType(copy, module)))

    def _ours(self, name: str, own: Any) -> Callable[..., Any] | None:
        """Return what a name means in the copy of a forward."""
        mixer = MIXERS.get(name)
        return None if mixer is None else self._mixing(mixer, own)

    def _with_scan(self, own_forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return a forward that is called with a scan of the row that runs."""
        scan = self._mixing(linear_attention, None)

        def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return own_forward(scan, module, *args, **kwargs)

        return forward

    def _mixing(self, mixer: Callable[..., Any], own: Any) -> Callable[..., Any]:
        """Return a mixer for the row that runs, of policy and reference if they run together."""

        def mix(*args: Any, **kwargs: Any) -> Any:
            if adapters_of_reference((args, kwargs)) is not None:
                return in_lockstep(mix, args, kwargs)
            return mixer(own, self._row.require_layout(), *args, **kwargs)

        return mix
