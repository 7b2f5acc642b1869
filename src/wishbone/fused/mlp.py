"""Gated MLPs of any transformers model as one function each.

An MLP is recognized by the sizes of its layers, and what it computes is tested: its activation on a range of values,
the whole module on a synthetic input. Where the module's own output differs by more than rounding (a factor, a norm, a
clamp between), the module runs its own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from inspect import signature
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from wishbone.fused.instance_attributes import REPLACED
from wishbone.fused.lockstep import Lockstep
from wishbone.fused.lora_layer import (
    Forward,
    LayerReader,
    base_of,
    columns,
    has_hooks,
    input_features,
    output_features,
    read_all,
    why_not,
)
from wishbone.fused.quantized_input import QuantizedInput
from wishbone.fused.rounding import differs_by_rounding
from wishbone.ops.fp8_quantize import LockstepRows, QuantizedRows
from wishbone.ops.gated_mlp import Activation, activate, gated_mlp
from wishbone.ops.lora_linear import ReferenceCall, compute_dtype

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Relative difference between a module's own output and ours that rounding explains."""


class FusedMlp:
    """One MLP of a model.

    Args:
        name: of the module in its model.
        module: the MLP.
        layers: its linear layers, in the order of `gated_mlp`.
        activation_module: the module that computes its activation; None where its forward calls a function.
        activation: what that is.
        quantized: where fused norms leave their output for 8-bit layers.

    Attributes:
        tile_tokens: tokens that are computed at a time; None computes all at once.
        ran_own: whether a call ran the module's own forward.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        layers: tuple[nn.Module, ...],
        activation_module: nn.Module | None,
        activation: Activation,
        quantized: QuantizedInput,
    ) -> None:
        self.name, self.module, self.layers = name, module, layers
        self.tile_tokens: int | None = None
        self.ran_own = False
        self._parts = layers if activation_module is None else (*layers, activation_module)
        self._activation, self._quantized = activation, quantized
        self._readers = [LayerReader(layer) for layer in layers]

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """Modules whose forward is replaced."""
        return (self.module,)

    def read_own(self) -> None:
        """Read the weights of layers without adapter, before their forward is replaced."""
        for reader in self._readers:
            reader.read_own()

    def forwards(self) -> Iterator[Forward]:
        """Yield what replaces the forward of each of `modules`."""
        own_forward = self.module.forward  # its layers run apart, each for itself

        def forward(x: Any, *args: Any, **kwargs: Any) -> Any:
            y = None if args or kwargs or not isinstance(x, Tensor) else self.compute(x)
            if y is None:
                self.ran_own = True
                return own_forward(x, *args, **kwargs)
            return y

        yield forward

    def compute(self, x: Tensor) -> Tensor | None:
        """Return the MLP's output; None if one of its layers cannot be read or has hooks, which would be passed by."""
        if any(map(has_hooks, self._parts)):
            return None
        policy = x.policy if isinstance(x, Lockstep) else x
        read = read_all(self._readers, policy, compute_dtype(policy))
        if read is None:
            return None
        rows = None if self.tile_tokens else self._quantized.take(x, read[0].weight)
        mlp = partial(gated_mlp, policy, *columns(read), activation=self._activation, tile_tokens=self.tile_tokens)
        if not isinstance(x, Lockstep):
            assert not isinstance(rows, LockstepRows)
            return mlp(prepared=rows)
        reference_call = read_reference_call(x, self._readers, rows)
        if reference_call is None:
            return None
        y = mlp(reference_call=reference_call)
        return lockstep_outputs([y], reference_call, x.adapters)[0]


def fused_mlp_of(
    module: nn.Module, name: str, linears: dict[str, nn.Module], quantized: QuantizedInput | None = None
) -> FusedMlp | str:
    """Return the MLP that a module is, after comparing its output with ours, or why it is not computed as one.

    Args:
        module: any module of a model; nothing of it is changed. One with hooks, which would see the trial, is left.
        name: of the module.
        linears: its children that are linear layers which can be read, by name.
        quantized: where fused norms leave their output for 8-bit layers; None without such norms.
    """
    kind = type(module).__name__
    others = [m for n, m in module.named_children() if n not in linears and not _does_nothing(m)]
    hidden = [m for m in others if input_features(m) is not None]
    if hidden:
        return _why_unreadable(hidden[0])
    orders = list(_orders(list(linears.values())))
    if not orders or not _takes_one_input(module):
        return f"{kind} has no gate" if len(linears) == 2 else f"{kind} has other layers than a gated MLP"
    if len(others) > 1 or any(True for other in others for _ in other.children()):
        return f"{kind} has more than an activation between its layers"
    if any(map(has_hooks, module.modules())):
        return "hooks look at their inputs and outputs"
    if "forward" in vars(module):
        return REPLACED
    activation = _activation_of(module, others[0] if others else None, orders[0][0])
    if activation is None:
        what = type(others[0]).__name__ if others else "no module of its own"
        return f"the activation of {kind} ({what}) is neither SiLU nor GELU"
    for layers in orders:
        mlp = FusedMlp(name, module, layers, others[0] if others else None, activation, quantized or QuantizedInput())
        agrees = _agrees(mlp)
        if agrees is None:
            return why_not(layers)
        if agrees:
            return mlp
    return f"{kind} computes more than its layers and its activation"


def read_reference_call(
    x: Lockstep, readers: Sequence[LayerReader], rows: LockstepRows | QuantizedRows | None
) -> ReferenceCall | None:
    """Return the reference's half of a call of layers with the input x; None if one must run its own forward.

    Args:
        x: [..., K].
        readers: of the layers.
        rows: both of x as 8-bit layers take them, where a norm has left them.
    """
    adapters = [reader.read_reference(x.adapters) for reader in readers]
    read = [one[0] for one in adapters if one is not None]
    if len(read) < len(adapters):
        return None
    dtype = compute_dtype(x.reference)
    reference, difference = x.reference.to(dtype).reshape(-1, x.shape[-1]), x.difference
    assert rows is None or isinstance(rows, LockstepRows)
    if difference is not None and not any(read):
        return ReferenceCall(reference, read, rows, difference.to(dtype).reshape(reference.shape))
    return ReferenceCall(reference, read, rows)


def lockstep_outputs(
    outputs: Sequence[Tensor], reference_call: ReferenceCall, adapters: tuple[str, ...]
) -> list[Lockstep]:
    """Return the policy's outputs of a call [..., N_i] with the reference's, and their differences where d is carried.

    Args:
        outputs: the policy's.
        reference_call: of the reference, once it has run.
        adapters: as in `Lockstep`.
    """
    differences = reference_call.differences or (None,) * len(outputs)
    return [
        Lockstep(y, reference.view(y.shape), adapters, None if difference is None else difference.view(y.shape))
        for y, reference, difference in zip(outputs, reference_call.outputs, differences, strict=True)
    ]


def _orders(linears: list[nn.Module]) -> Iterator[tuple[nn.Module, ...]]:
    """Yield the orders in which layers can be the gate, the up and the down projection, or the packed one and down.

    Families name these layers in many ways, so their sizes are looked at; the usual order comes first.
    """
    for layers in permutations(linears) if len(linears) in (2, 3) else ():
        inner, outer = input_features(layers[-1]), input_features(layers[0])
        widths = [output_features(layer) for layer in layers[:-1]]
        same_input = all(input_features(layer) == outer for layer in layers[:-1])
        if same_input and output_features(layers[-1]) == outer and widths in ([inner, inner], [2 * (inner or 0)]):
            yield layers


def _takes_one_input(module: nn.Module) -> bool:
    required = [
        one
        for one in signature(type(module).forward).parameters.values()
        if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    return len(required) == 2


def _why_unreadable(layer: Any) -> str:
    weight = getattr(base_of(layer), "weight", None)
    if isinstance(weight, Tensor) and weight.requires_grad:
        return "their weights are trained"
    return f"the weights of {type(layer).__name__} are in a form that cannot be read"


def _does_nothing(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity) or (isinstance(module, nn.Dropout) and module.p == 0)


class _ActivationCalls(TorchFunctionMode):
    """Collects calls of activation functions."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[Tensor], Any]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (nn.functional.silu, nn.functional.gelu):
            self.calls.append(partial(func, **{key: value for key, value in (kwargs or {}).items() if key != "input"}))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def _activation_of(module: nn.Module, part: nn.Module | None, layer: nn.Module) -> Activation | None:
    """Return which activation an MLP computes, by its part or by the one function that its forward calls, or None."""
    x = _made_up(layer)
    if x.is_meta or x.dtype not in TOLERANCE or (part is not None and any(True for _ in part.parameters())):
        return None
    function: Callable[[Tensor], Any] | None = part
    if part is None:
        with _ActivationCalls() as seen, torch.autocast(x.device.type, enabled=False):
            module(x)
        function = seen.calls[0] if len(seen.calls) == 1 else None
    if function is None:
        return None
    values = torch.linspace(-6, 6, 97, device=x.device)
    results = function(values)
    known: tuple[Activation, ...] = ("silu", "gelu_tanh")
    return next((name for name in known if torch.allclose(results, activate(values, name), rtol=0, atol=2e-5)), None)


def _made_up(layer: Any) -> Tensor:
    """An input [1, 5, in_features] for a linear layer, in the dtype that it computes in."""
    base = base_of(layer)
    packed = getattr(base.weight, "quant_state", None) or getattr(base, "quant_state", None)
    dtype = getattr(base, "compute_dtype", None) or (base.weight.dtype if packed is None else packed.dtype)
    features: int = layer.in_features
    values = torch.arange(5 * features, dtype=torch.float64, device=base.weight.device).mul(0.7).add(0.3).sin()
    return values.view(1, 5, features).to(dtype)


@torch.no_grad()
def _agrees(mlp: FusedMlp) -> bool | None:
    """Whether our output for a synthetic input is the module's own but for rounding; None if layers cannot be read."""
    mlp.read_own()
    x = _made_up(mlp.layers[0])
    with torch.autocast(x.device.type, enabled=False):
        ours = mlp.compute(x)
        own = mlp.module(x)
    return None if ours is None else isinstance(own, Tensor) and differs_by_rounding(ours, own, TOLERANCE)
