"""What stands for the functions by which recurrent layers mix tokens, on a row of pairs.

A recurrent layer mixes tokens by a short causal convolution and a scan. The family's own functions know whole sequences
only; these take the layout of the row, run the stems, keep the state at each stem's end and start the branches from it:
by kernels, by the family's own function on batches of stems and branches, or in PyTorch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wishbone.ops.chunked_scan import TRIED_ROW, has_kernels
from wishbone.ops.gated_delta_rule import gated_delta_rule
from wishbone.ops.kernel_trial import ROUNDING, kernel_is_right
from wishbone.ops.prefix_attention import PrefixLayout
from wishbone.ops.prefix_batches import prefix_batches
from wishbone.ops.prefix_convolution import prefix_convolution
from wishbone.ops.scan_kernels import Library, why_no_kernels
from wishbone.ops.selective_scan import selective_scan
from wishbone.ops.state_space_scan import state_space_scan


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


def linear_attention(
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
"""Replacements of forwards that mix tokens without a function of their module, by the name of the class.

Each is called with `linear_attention` of the row, the module and the arguments of the call.
"""
KERNELS: dict[str, Library] = {
    "torch_chunk_gated_delta_rule": "fla",
    "chunk_kimi_delta_attention": "fla",
    "mamba2_chunk_scan": "mamba_ssm",
}
"""The library that has kernels for a scan which ours do not take: Kimi's, and keys that are too long."""
IN_STEPS = frozenset({"mamba_selective_scan"})
"""Scans that have no kernels and run in PyTorch, chunk after chunk, in as many steps as the longest sequence has."""
