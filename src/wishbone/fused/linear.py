"""Linear layers and MLPs of any transformers model through `lora_linears` and `gated_mlp`, while a step runs.

PEFT wraps each linear layer for itself: q, k and v each keep a copy of their common input, cast it to float32 for their
adapters and add up three gradients. Here layers that share an input are found by the names that model families give
them, and MLPs by their parts (`mlp.py`).

Within `FusedLinears(model).running()` the layers' `forward` is ours, as an attribute of each instance; outside, nothing
of the model is changed. The first of a group that is called computes all of it and leaves the others' outputs for their
calls: they are given out only to a call with the same input object, unchanged since, and in the same state of adapters
and autograd. Which adapters are on is read from PEFT at every call (`lora_layer.py`). What cannot be read runs its own
forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from wishbone.fused.coverage import Site
from wishbone.fused.gathered import GatheredUnits
from wishbone.fused.lockstep import Lockstep
from wishbone.fused.lockstep_calls import apart
from wishbone.fused.lora_layer import (
    Forward,
    LayerReader,
    base_of,
    columns,
    input_features,
    is_lora_linear,
    read_all,
    why_not,
)
from wishbone.fused.mlp import FusedMlp, fused_mlp_of, lockstep_outputs, read_reference_call
from wishbone.fused.parts import part_of
from wishbone.fused.quantized_input import QuantizedInput
from wishbone.ops.fp8_quantize import LockstepRows
from wishbone.ops.frozen_linear import DenseWeight, FP8Weight, Int8Weight, frozen_weight_of
from wishbone.ops.lora_linear import compute_dtype, fuse_group, lora_linears

GROUPS = (("q_proj", "q_a_proj", "k_proj", "v_proj", "kv_a_proj_with_mqa"), ("gate_proj", "up_proj"))
"""Names that model families give layers which are called with one input; a family has some of them."""


class FusedLinears:
    """Finds what can be fused in a model and switches it on and off.

    Args:
        model: a transformers model, with or without PEFT's adapters. Nothing of it is changed.
        quantized: where fused norms leave their output for 8-bit layers; None without such norms.

    Attributes:
        groups: linear layers that are computed together, or alone, by name.
        mlps: MLPs that are computed as one function, by name.
    """

    def __init__(self, model: nn.Module, quantized: QuantizedInput | None = None) -> None:
        self._left = _Left()
        self._quantized = quantized or QuantizedInput()
        self._groups: list[_Group] = []
        self._mlps: list[FusedMlp] = []
        self._not_fused: list[Site] = []
        self._switched: list[nn.Module] = []
        self._depth = 0
        self._gathered = GatheredUnits(model)
        self._find(model, "")

    @property
    def groups(self) -> list[tuple[str, ...]]:  # noqa: D102
        return [group.names for group in self._groups]

    @property
    def mlps(self) -> list[str]:  # noqa: D102
        return [mlp.name for mlp in self._mlps]

    @property
    def switched_on(self) -> set[nn.Module]:
        """Modules that run fused now; one whose forward somebody else has replaced is none of them."""
        return set(self._switched)

    def sites(self) -> Iterator[Site]:
        """Yield every MLP and every group of linear layers outside the fused ones, fused or not as they ran so far."""
        yield from self._not_fused
        inside = {layer for mlp in self._mlps for layer in mlp.layers}
        for mlp in self._mlps:
            yield Site("MLP", mlp.name, why_not(mlp.layers) if mlp.ran_own else None)
        for group in self._groups:
            if not inside.issuperset(group.modules):
                yield Site("linear group", ", ".join(group.names), why_not(group.modules) if group.ran_own else None)

    @contextmanager
    def running(self, *, tile_tokens: int | None = None) -> Iterator[None]:
        """Context of forward passes and of the backward passes that recompute them; it may be entered again inside.

        Args:
            tile_tokens: MLPs compute rows that are longer tile by tile (`gated_mlp`); None computes all at once.
        """
        before = [mlp.tile_tokens for mlp in self._mlps]
        for mlp in self._mlps:
            mlp.tile_tokens = tile_tokens
        if self._depth == 0:
            self._switch_on()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._switch_off()
            for mlp, tile in zip(self._mlps, before, strict=True):
                mlp.tile_tokens = tile

    def join_weights(self) -> int:
        """Move the plain or 8-bit weights of each group into one buffer, for good, so that one product serves it.

        Values, names and shapes stay, and so does what is saved. Return how many groups were moved.
        """
        moved = 0
        for group in self._groups:
            bases = [base_of(module) for module in group.modules]
            forms = {type(frozen_weight_of(base)) for base in bases}
            if len(bases) > 1 and forms == {DenseWeight}:
                moved += fuse_group([base.weight for base in bases])
            elif len(bases) > 1 and forms in ({FP8Weight}, {Int8Weight}):
                scales = [base.weight_scale for base in bases]
                moved += fuse_group([base.weight for base in bases]) and fuse_group(scales)
        if moved and torch.cuda.is_available():
            torch.cuda.empty_cache()
        return moved

    def _switch_on(self) -> None:
        sites: list[_Group | FusedMlp] = [*self._groups, *self._mlps]
        free = [site for site in sites if not any("forward" in vars(module) for module in site.modules)]
        for site in free:
            site.read_own()
        for site in free:
            for module, forward in zip(site.modules, list(site.forwards()), strict=True):
                vars(module)["forward"] = forward
                self._switched.append(module)

    def _switch_off(self) -> None:
        self._left.clear()
        for module in self._switched:
            vars(module).pop("forward", None)
        self._switched.clear()

    def _find(self, module: nn.Module, name: str) -> None:
        """Note groups and MLPs below `module`. PEFT's layers are leaves, and what it trains as a whole stays alone."""
        children = dict(module.named_children())
        linears = {child: found for child, found in children.items() if _can_be_read(found)}
        alone = {child: found for child, found in linears.items() if is_lora_linear(found) or _is_quantized(found)}
        for names in GROUPS:
            members = {child: linears[child] for child in names if child in linears}
            same_input = len({input_features(member) for member in members.values()}) == 1
            if len(members) > 1 and same_input and any(child in alone for child in names):
                self._add(name, members)
                alone = {child: found for child, found in alone.items() if child not in names}
        for child, found in alone.items():
            self._add(name, {child: found})
        with self._gathered.around(module) if len(linears) > 1 else nullcontext():
            mlp = fused_mlp_of(module, name, linears, self._quantized)
        if isinstance(mlp, FusedMlp):
            self._mlps.append(mlp)
        elif part_of(module) == "MLP":
            self._not_fused.append(Site("MLP", name, mlp))
        for child, found in children.items():
            if child in linears or isinstance(found, ModulesToSaveWrapper):
                continue
            if not isinstance(found, BaseTunerLayer):
                self._find(found, _join(name, child))
            elif input_features(found.get_base_layer()) is not None:  # no adapter of experts or of an embedding
                reason = f"PEFT's {type(found).__name__} has no fused form"
                self._not_fused.append(Site("linear group", _join(name, child), reason))

    def _add(self, parent: str, members: dict[str, nn.Module]) -> None:
        names = tuple(_join(parent, child) for child in members)
        self._groups.append(_Group(names, tuple(members.values()), self._left, self._quantized))


class _Left:
    """Outputs that one call of a group left for the calls of its siblings; of one group at a time."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._group: _Group | None = None
        self._input: tuple[Tensor, int, torch.dtype] | None = None
        self._outputs: dict[int, tuple[Tensor, tuple[Any, ...]]] = {}

    def leave(self, group: _Group, x: Tensor, outputs: dict[int, Tensor]) -> None:
        self._group, self._input = group, (x, x._version, compute_dtype(x))
        self._outputs = {i: (y, group.state(i)) for i, y in outputs.items()}

    def take(self, group: _Group, index: int, x: Tensor) -> Tensor | None:
        """Return the output that waits for this call, and forget it; None if none does."""
        if self._group is not group or self._input is None or index not in self._outputs:
            return None
        of, version, dtype = self._input
        y, state = self._outputs.pop(index)
        if of is not x:
            group.shares_input = False
        same = of is x and version == x._version and dtype == compute_dtype(x)
        same = same and state == group.state(index)
        if not self._outputs or not same:
            self.clear()
        return y if same else None


class _Group:
    """Linear layers that are called with the same input, or one layer.

    Attributes:
        names, modules: the layers.
        shares_input: whether the layers' calls have had one input so far.
        ran_own: whether a call ran a layer's own forward.
    """

    def __init__(
        self, names: tuple[str, ...], modules: tuple[nn.Module, ...], left: _Left, quantized: QuantizedInput
    ) -> None:
        self.names, self.modules = names, modules
        self.shares_input = len(modules) > 1
        self.ran_own = False
        self._left, self._quantized = left, quantized
        self._readers = [LayerReader(module) for module in modules]

    def read_own(self) -> None:
        for reader in self._readers:
            reader.read_own()

    def state(self, index: int) -> tuple[Any, ...]:
        return torch.is_grad_enabled(), self._readers[index].state()

    def forwards(self) -> Iterator[Forward]:
        for index, module in enumerate(self.modules):
            yield self._forward(index, module.forward)

    def _forward(self, index: int, own_forward: Forward) -> Forward:
        own_forward = apart(self.modules[index], own_forward)

        def forward(x: Any, *args: Any, **kwargs: Any) -> Any:
            if args or kwargs or not isinstance(x, Tensor):
                self.ran_own = True
                return own_forward(x, *args, **kwargs)
            y = self._left.take(self, index, x)
            y = self._compute(index, x) if y is None else y
            if y is None:
                self.ran_own = True
                return own_forward(x)
            return y

        return forward

    def _compute(self, index: int, x: Tensor) -> Tensor | None:
        """Return this layer's output and leave those of its siblings; None if the layer cannot be read."""
        self._left.clear()
        dtype = compute_dtype(x)
        if self.shares_input and not x.is_inference():
            together = self._linears(x, dtype, self._readers)
            if together is not None:
                outputs = dict(enumerate(together))
                y = outputs.pop(index)
                self._left.leave(self, x, outputs)
                return y
        alone = self._linears(x, dtype, [self._readers[index]])
        return None if alone is None else alone[0]

    def _linears(self, x: Tensor, dtype: torch.dtype, readers: Sequence[LayerReader]) -> tuple[Tensor, ...] | None:
        """Return the outputs of some of the layers; None if one of them cannot be read."""
        policy = x.policy if isinstance(x, Lockstep) else x
        layers = read_all(readers, policy, dtype)
        if layers is None:
            return None
        rows = self._quantized.take(x, layers[0].weight)
        if not isinstance(x, Lockstep):
            assert not isinstance(rows, LockstepRows)
            return lora_linears(x, *columns(layers), prepared=rows)
        reference_call = read_reference_call(x, readers, rows)
        if reference_call is None:
            return None
        outputs = lora_linears(policy, *columns(layers), reference_call=reference_call)
        return tuple(lockstep_outputs(outputs, reference_call, x.adapters))


def _can_be_read(module: nn.Module) -> bool:
    """Whether a module is a linear layer that can be read, now or in another state of its adapters."""
    if is_lora_linear(module):
        return True
    return not isinstance(module, BaseTunerLayer) and frozen_weight_of(module) is not None


def _is_quantized(module: nn.Module) -> bool:
    """Whether a linear layer without adapter has its weight in codes: its own forward cannot run in lockstep."""
    weight = None if isinstance(module, BaseTunerLayer) else frozen_weight_of(module)
    return weight is not None and not isinstance(weight, DenseWeight)


def _join(parent: str, child: str) -> str:
    return f"{parent}.{child}" if parent else child
