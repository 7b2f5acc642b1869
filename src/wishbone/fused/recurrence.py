"""Recurrent layers over packed rows: both branches start from the state at their stem's end.

A recurrent layer of transformers projects each token by itself and mixes tokens in one or two functions of its module:
a short causal convolution and a scan. Such a function knows whole sequences only. So the layer runs a copy of its
forward in which these names mean ours (`rebound_function.py`), which run the stems first, keep the state at each
stem's end, and start the branches from it. Projections, gates and norms are the layer's own code.

Which row it is tells the argument `prefix_layout`, which the model hands down to each of its layers and these to their
parts, in the forward pass and when a layer is recomputed in the backward pass. Some releases of transformers call the
recurrent part without it; then the layer around it was called with it. Models that hand no keyword arguments down hand
their mask down, which can carry the layout (`mask_with_layout`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from wishbone.fused.instance_attributes import InstanceAttributes, slot_of
from wishbone.fused.lockstep import adapters_of_reference, in_lockstep
from wishbone.fused.parts import is_recurrence
from wishbone.fused.rebound_function import names_in, rebound
from wishbone.ops.chunked_scan import MOST_KEY_DIM, TRIED_ROW, has_kernels
from wishbone.ops.gated_delta_rule import gated_delta_rule
from wishbone.ops.kernel_trial import ROUNDING, kernel_is_right
from wishbone.ops.prefix_attention import PrefixLayout
from wishbone.ops.prefix_batches import prefix_batches
from wishbone.ops.prefix_convolution import prefix_convolution
from wishbone.ops.scan_kernels import Library, why_no_kernels
from wishbone.ops.selective_scan import selective_scan
from wishbone.ops.state_space_scan import state_space_scan

_SCAN = re.compile(r"^(?!use_|.*(recurrent|update|step)).*(scan|delta|inner_fn|rwkv)")
"""Names of functions that mix the tokens of whole sequences; those for single tokens of generation do not run, and
use_... are settings."""


_CARRIED = "wishbone_prefix_layout"
"""The attribute of a mask that holds a layout; a layer that is recomputed is handed the same mask."""

_RECOMPUTE = "_gradient_checkpointing_func"
"""The attribute of a layer of transformers that holds the function by which it is recomputed."""


class LayoutNotHandedDown(TypeError):
    """A model called its recurrent layers without the layout of the row."""


def mask_with_layout(tokens: Tensor, layout: PrefixLayout) -> Tensor:
    """Return a mask of ones, of the shape of `tokens`, that tells recurrent layers the layout of the row."""
    mask = torch.ones_like(tokens)
    setattr(mask, _CARRIED, layout)
    return mask


def _carried_by(mask: Any) -> PrefixLayout | None:
    """Return the layout that a mask carries, or None."""
    return getattr(mask, _CARRIED, None)


class _Row:
    """The row that runs at present.

    Attributes:
        layout: where its documents lie, or None outside of a layer.
    """

    def __init__(self) -> None:
        self.layout: PrefixLayout | None = None

    def told_by(self, forward: Callable[..., Any], layer: Any = None) -> Callable[..., Any]:
        """Return a forward that notes the layout it is called with, for as long as it runs.

        Args:
            forward: of a layer or of its recurrent part.
            layer: a layer that may be recomputed, whose recurrent part is not called with the layout: a recomputation
                that begins inside of `forward` notes the layout again.
        """

        def run(*args: Any, **kwargs: Any) -> Any:
            told = kwargs.get("prefix_layout") or _carried_by(kwargs.get("attention_mask"))
            with self.known(self.layout if told is None else told):
                recompute = vars(layer).get(_RECOMPUTE) if layer is not None else None
                if recompute is None:
                    return forward(*args, **kwargs)
                setattr(layer, _RECOMPUTE, self._again(recompute, self.layout))
                try:
                    return forward(*args, **kwargs)
                finally:
                    setattr(layer, _RECOMPUTE, recompute)

        return run

    @contextmanager
    def known(self, layout: PrefixLayout | None) -> Iterator[None]:
        """Context in which the row has a layout."""
        before, self.layout = self.layout, layout
        try:
            yield
        finally:
            self.layout = before

    def _again(self, recompute: Callable[..., Any], layout: PrefixLayout | None) -> Callable[..., Any]:
        """Return a layer's function for recomputation in which whatever runs again knows the layout."""

        def run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            def told(*own: Any, **options: Any) -> Any:
                with self.known(layout):
                    return function(*own, **options)

            return recompute(told, *args, **kwargs)

        return run


class PrefixRecurrence:
    """Finds the recurrent layers of a model and lets them run over packed rows.

    Args:
        model: a transformers model, with or without adapters. Nothing of it is changed outside of `running()`.

    Attributes:
        covered: recurrent modules that start branches from their stem's state.
        left: why the others do not, by the name of the module.
    """

    def __init__(self, model: nn.Module) -> None:
        self.covered: set[nn.Module] = set()
        self.left: dict[str, str] = {}
        self._attributes = InstanceAttributes()
        self._row = _Row()
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
                    self._attributes.add(layer, slot, self._row.told_by(getattr(layer, slot), layer))
        found = self.covered | {model.get_submodule(name) for name in self.left}
        for name, module in model.named_modules():
            if is_recurrence(module) and module not in found:
                self.left[name] = "they lie outside of the layers that are told about the row"

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

    def _find(self, name: str, module: nn.Module, told: bool) -> None:
        forward = type(module).forward
        slot = slot_of(module)
        if not told or slot is None or not isinstance(forward, FunctionType):
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
        self._libraries.update(
            KERNELS[one]
            for one in names_in(forward) & KERNELS.keys()
            if longest > MOST_KEY_DIM or one == "chunk_kimi_delta_attention"
        )
        self._attributes.add(module, slot, self._row.told_by(MethodType(copy, module)))

    def _ours(self, name: str, own: Any) -> Callable[..., Any] | None:
        """Return what a name means in the copy of a forward."""
        mixer = MIXERS.get(name)
        return None if mixer is None else self._mixing(mixer, own)

    def _with_scan(self, own_forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return a forward that is called with a scan of the row that runs."""
        scan = self._mixing(_linear_attention, None)

        def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return own_forward(scan, module, *args, **kwargs)

        return forward

    def _mixing(self, mixer: Callable[..., Any], own: Any) -> Callable[..., Any]:
        """Return a mixer for the row that runs, of both halves if policy and reference run together."""

        def mix(*args: Any, **kwargs: Any) -> Any:
            if adapters_of_reference((args, kwargs)) is not None:
                return in_lockstep(mix, args, kwargs)
            if self._row.layout is None:
                raise LayoutNotHandedDown("the layers of this model do not hand prefix_layout down")
            return mixer(own, self._row.layout, *args, **kwargs)

        return mix


def _convolution(
    own: Callable[..., Tensor],
    layout: PrefixLayout,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    **_ignored: Any,
) -> Tensor:
    """Convolve a row [1, channels, tokens], weights [channels, taps]: by a kernel, or the family's own function."""
    options = {} if activation is None else {"activation": activation}

    def by_family(inputs: Sequence[Tensor], row: PrefixLayout = layout) -> Tensor:
        return prefix_convolution(inputs[0], weight.shape[-1], row, lambda one: own(one, *inputs[1:], **options))

    def by_kernel(inputs: Sequence[Tensor], row: PrefixLayout = layout) -> Tensor:
        from wishbone.ops.prefix_convolution.triton import prefix_convolution_triton

        own_x, own_weight, *own_bias = inputs
        silu, one_bias = activation is not None, own_bias[0] if own_bias else None
        return prefix_convolution_triton(own_x[0].T, own_weight, one_bias, row, silu=silu).T[None]

    inputs = [x, weight] if bias is None else [x, weight, bias]
    if not x.is_cuda or x.dtype not in ROUNDING or activation not in (None, "silu", "swish"):
        return by_family(inputs)
    kind = (*weight.shape, x.dtype, weight.dtype, bias is None, activation, x.device)
    made_up = functools.partial(_short_row, inputs)
    right = kernel_is_right(
        "a short convolution",
        kind,
        lambda one: by_kernel(one, TRIED_ROW),
        lambda one: by_family(one, TRIED_ROW),
        made_up,
    )
    return by_kernel(inputs) if right else by_family(inputs)


def _short_row(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Inputs of a convolution over the row that kernels are tried with."""
    x, *others = inputs
    wave = torch.arange(x.shape[1] * TRIED_ROW.length, dtype=torch.float32, device=x.device).mul(0.7).sin()
    return [wave.view(1, x.shape[1], TRIED_ROW.length).to(x.dtype), *(one.detach().to(x.dtype) for one in others)]


def _delta_rule(
    own: Callable[..., Any],
    layout: PrefixLayout,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    use_qk_l2norm_in_kernel: bool = False,
    **_ignored: Any,
) -> tuple[Tensor, None]:
    """Run the gated delta rule of a row, [1, tokens, heads, dim]; no state is handed on."""
    if (g.ndim == 3 and has_kernels(query, value)) or why_no_kernels("fla", query.device) is not None:
        return gated_delta_rule(query, key, value, g, beta, layout, unit=use_qk_l2norm_in_kernel), None
    return delta_rule_in_batches(own, layout, query, key, value, g, beta, use_qk_l2norm_in_kernel), None


def delta_rule_in_batches(
    own: Callable[..., Any],
    layout: PrefixLayout,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    unit: bool,
) -> Tensor:
    """Run it by the family's own function, which takes and returns states; arguments as `gated_delta_rule`."""

    def scan(inputs: Sequence[Tensor], state: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v, decay, written = inputs
        found: tuple[Tensor, Tensor] = own(
            q, k, v, g=decay, beta=written, initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=unit
        )
        return found

    return prefix_batches(layout, query.device).scan([query, key, value, g, beta], scan)


def _state_space(
    own: Callable[..., Any],
    layout: PrefixLayout,
    x: Tensor,
    dt: Tensor,
    rate: Tensor,
    write: Tensor,
    read: Tensor,
    chunk_size: int = 256,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    **_ignored: Any,
) -> Tensor:
    """Run Mamba-2's scan of a row, [1, tokens, heads, head_dim]; the time step is made as transformers makes it."""
    if z is not None:
        raise NotImplementedError("a gate inside the scan is not known")
    dt = dt if dt_bias is None else dt + dt_bias.to(dt.dtype)
    dt = (F.softplus(dt) if dt_softplus else dt).clamp(*dt_limit)
    if has_kernels(read, x) or why_no_kernels("mamba_ssm", x.device) is not None:
        return state_space_scan(x, dt, rate, write, read, D, layout)
    return state_space_in_batches(own, layout, x, dt, rate, write, read, D, chunk_size)


def state_space_in_batches(
    own: Callable[..., Any],
    layout: PrefixLayout,
    x: Tensor,
    dt: Tensor,
    rate: Tensor,
    write: Tensor,
    read: Tensor,
    skip: Tensor | None,
    chunk_size: int,
) -> Tensor:
    """Run it by the family's own function, which takes and returns states; arguments as `state_space_scan`."""

    def scan(inputs: Sequence[Tensor], state: Tensor | None) -> tuple[Tensor, Tensor]:
        own_x, step, b, c = inputs
        found: tuple[Tensor, Tensor] = own(
            own_x, step, rate, b, c, chunk_size=chunk_size, D=skip, initial_states=state, return_final_states=True
        )
        return found

    return prefix_batches(layout, x.device).scan([x, dt, write, read], scan)


def _selective_scan(
    _own: Callable[..., Any],
    layout: PrefixLayout,
    x: Tensor,
    dt: Tensor,
    rate: Tensor,
    write: Tensor,
    read: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    **_ignored: Any,
) -> Tensor:
    """Run Mamba's scan of a row, [1, channels, tokens]; the time step is made as transformers makes it."""
    dt = dt if delta_bias is None else dt + delta_bias.to(dt.dtype)[:, None]
    dt = F.softplus(dt) if delta_softplus else dt
    x, dt, write, read = (one.transpose(1, 2) for one in (x, dt, write, read))
    y = selective_scan(x, dt, rate, write, read, D, layout).transpose(1, 2)
    return y if z is None else y * F.silu(z)


def _linear_attention(
    _own: None, layout: PrefixLayout, query: Tensor, key: Tensor, value: Tensor, rate: Tensor
) -> Tensor:
    """Run linear attention with a decay of its own for each head, [1, tokens, heads, head_dim]; rate is [heads]."""
    step = torch.ones(value.shape[:3], dtype=torch.promote_types(value.dtype, torch.float32), device=value.device)
    return state_space_scan(value, step, rate, key, query, None, layout).to(value.dtype)


def _lightning_attention(
    scan: Callable[..., Tensor], module: Any, hidden_states: Tensor, *_args: Any, **_kwargs: Any
) -> tuple[Tensor, None]:
    """Run MiniMax's lightning attention (arXiv 2501.08313), whose own forward mixes tokens in code of its own."""
    heads, size = module.num_attention_heads, module.head_dim
    mixed = module.act_fn(module.qkv_proj(hidden_states)).unflatten(-1, (heads, 3 * size))
    found = scan(*torch.split(mixed, size, dim=-1), -module.slope_rate.flatten()).flatten(-2)
    return module.out_proj(torch.sigmoid(module.output_gate(hidden_states)) * module.norm(found)), None


def _not_in_one_kernel(*_args: Any, **_kwargs: Any) -> None:
    """Return None, by which a family computes convolution and scan one after the other."""


MIXERS: dict[str, Callable[..., Any]] = {
    "causal_conv1d_fn": _convolution,
    "torch_chunk_gated_delta_rule": _delta_rule,
    "chunk_kimi_delta_attention": _delta_rule,
    "mamba2_chunk_scan": _state_space,
    "mamba_selective_scan": _selective_scan,
    "mamba2_split_conv1d_scan_combined": _not_in_one_kernel,
    "mamba_inner_fn": _not_in_one_kernel,
}
"""Functions of transformers' modules that mix tokens, by name, and what stands for them.

Each is called with the family's own function, the layout of the row, and the arguments of the call.
"""
OWN_FORWARDS: dict[str, Callable[..., Any]] = {"MiniMaxLightningAttention": _lightning_attention}
"""What runs in the place of forwards that mix tokens without a function of their module, by the name of the class.

Each is called with `_linear_attention` of the row, the module and the arguments of the call.
"""
KERNELS: dict[str, Library] = {
    "torch_chunk_gated_delta_rule": "fla",
    "chunk_kimi_delta_attention": "fla",
    "mamba2_chunk_scan": "mamba_ssm",
}
"""The library that has kernels for a scan which ours do not take: Kimi's, and keys that are too long."""
