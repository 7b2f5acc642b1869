r"""Arithmetic of frozen linear layers that share an input, forward and backward, on plain tensors without autograd.

With S_i = s_i A_i, and a stack S of all S_i so that x is read once for all of them:

    forward    l = x S^T,                  y_i = l_i B_i^T + b_i + x W_i^T
    backward   h_i = g_i B_i,              dx  = h S + sum_i g_i W_i
               dB_i = g_i^T l_i,           dA_i = s_i h_i^T x

A, B are cast to the dtype of x, whatever they are kept in; dA and dB come out of the product in float32 (float64 for
float64), never rounded to 16 bits. How y and dx are rounded: see `precision.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wishbone.ops.carried_difference import quantized_in_lockstep
from wishbone.ops.fp8_quantize import QuantizedRows, quantize_both, quantize_side_by_side
from wishbone.ops.frozen_linear import DenseWeight, EightBitWeight, FrozenWeight, InputForm, MatrixWeight, Prepared
from wishbone.ops.lora_linear.adapter import Adapter
from wishbone.ops.lora_linear.lockstep import ReferenceCall, eight_bit_in_lockstep, matrix_in_lockstep
from wishbone.ops.lora_linear.one_buffer import joined_weight
from wishbone.ops.lora_linear.precision import LowTerm, gradient_and_term, precise_product, product_and_terms
from wishbone.ops.low_rank_add import add_low_rank_

Factors = Sequence[Tensor | None]
"""S and B_1 .. B_m of a group in the dtype of its arithmetic; None where there is no adapter."""


class LinearGroup:
    """Linear layers over one input for one pass: their weights as they are, the factors of their adapters cast.

    Args:
        weights: W_i.
        biases: b_i [N_i] or None.
        adapters: an adapter or None for each weight.
        dtype: of the input and of the arithmetic.
        join: where the weights lie in one buffer, let one product serve them all. Outputs then share memory: one that
            is kept keeps all of them.
        factors: the group's `factors` in the forward pass, kept for the backward pass; None casts them.

    Attributes:
        sizes: outputs of each layer, N_i.
        whole: the one weight that all outputs come from; None if there are several.
    """

    def __init__(
        self,
        weights: Sequence[FrozenWeight],
        biases: Sequence[Tensor | None],
        adapters: Sequence[Adapter | None],
        dtype: torch.dtype,
        *,
        join: bool = False,
        factors: Factors | None = None,
    ) -> None:
        self.weights = weights
        self.sizes = [weight.out_features for weight in weights]
        self.biases = [None if bias is None else bias.to(dtype) for bias in biases]
        self.adapters = adapters
        self.ranks: list[slice] = []
        rank = 0
        for adapter in adapters:
            own = 0 if adapter is None else adapter.a.shape[0]
            self.ranks.append(slice(rank, rank + own))
            rank += own
        if factors is None:
            b = [None if adapter is None else adapter.b.to(dtype) for adapter in adapters]
            factors = [self._stacked_a(rank, dtype) if rank else None, *b]
        self.factors = factors
        self.a, *self.b = factors
        self.joined = joined_weight(weights, dtype) if join and len(weights) > 1 else None
        self.whole = weights[0] if len(weights) == 1 else self.joined
        self.dtype = dtype

    def forward(
        self, x: Tensor, prepared: Prepared | None = None, low: Tensor | None = None
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Return outputs y_i [T, N_i] and l [T, sum of r_i], None without adapters.

        Args:
            x: [T, K], contiguous rows.
            prepared: what `prepare(x)` of the first weight returns, where it was made together with x.
            low: l, where `low` has computed it.
        """
        if self.joined is not None:
            together, low = self.forward_together(x, prepared)
            return together.split(self.sizes, dim=1), low
        low = self.low(x) if low is None else low
        inputs: dict[InputForm, Prepared] = {} if prepared is None else {self.weights[0].input_form: prepared}
        outputs = []
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if weight.input_form not in inputs:
                inputs[weight.input_form] = weight.prepare(x)
            outputs.append(product_and_terms(weight, inputs[weight.input_form], bias, self._low_terms(low, [i])))
        return tuple(outputs), low

    def forward_together(self, x: Tensor, prepared: Prepared | None = None) -> tuple[Tensor, Tensor | None]:
        """Return all y_i side by side in one buffer [T, sum of N_i], and l, for weights that are joined."""
        joined, low = self.joined, self.low(x)
        assert joined is not None
        prepared = joined.prepare(x) if prepared is None else prepared
        terms = self._low_terms(low, range(len(self.weights)))
        return product_and_terms(joined, prepared, self._joined_bias(x), terms), low

    def forward_in_lockstep(self, x: Tensor, reference_call: ReferenceCall) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Return what `forward` returns, and leave the reference's outputs in `reference_call`.

        Outputs of joined weights come in one tensor each, [T, sum of N_i], the policy's and the reference's.
        """
        if reference_call.difference is not None:
            return self._forward_carried(x, reference_call)
        reference = LinearGroup(self.weights, self.biases, reference_call.adapters, self.dtype, join=True)
        if all(isinstance(weight, DenseWeight) for weight in self.weights):
            if self.joined is None:
                reference_call.leave(*reference.forward(reference_call.x)[0])
                return self.forward(x)
            reference_call.leave(reference.forward_together(reference_call.x)[0])
            together, low = self.forward_together(x)
            return (together,), low
        low, reference_low = self.low(x), reference.low(reference_call.x)
        rows, bases = reference_call.rows, None
        if reference.whole is not None and reference.whole.input_form is not None:
            rows = rows or quantize_both(x, reference_call.x, form=reference.whole.input_form)
            base = reference.whole.forward(rows.reference, reference._joined_bias(x))
            bases = [base] if self.joined is not None else base.split(self.sizes, dim=1)
        outputs = []
        for i, (weight, bias, layers) in enumerate(self._products(x)):
            terms, reference_terms = self._low_terms(low, layers), reference._low_terms(reference_low, layers)
            if weight.input_form is not None:
                rows = rows or quantize_both(x, reference_call.x, form=weight.input_form)
                base = weight.forward(rows.reference, bias) if bases is None else bases[i]
                outputs.append(eight_bit_in_lockstep(weight, rows, base, terms, reference_terms))
            else:
                outputs.append(matrix_in_lockstep(weight, x, reference_call.x, bias, terms, reference_terms))
        reference_call.leave(*(y for _, y in outputs))
        return tuple(y for y, _ in outputs), low

    def _forward_carried(self, x: Tensor, reference_call: ReferenceCall) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """`forward_in_lockstep` with the difference of the inputs in a tensor of its own; no outputs share memory."""
        low, base, change = self.products_of_difference(x, reference_call)
        bases, changes = self._split(base), self._split(change)
        outputs = [torch.empty(one.shape, dtype=one.dtype, device=one.device) for one in bases]
        for i, (base_of, change_of, y) in enumerate(zip(bases, changes, outputs, strict=True)):
            terms = self._low_terms(low, [i])
            if not terms:
                torch.add(base_of, change_of, out=y)
            for _, low_of, factor in terms:
                add_low_rank_(change_of, low_of, factor, base=base_of, total=y)
        reference_call.leave(*bases, differences=changes)
        return tuple(outputs), low

    def forward_of_difference(
        self, x: Tensor, reference_call: ReferenceCall
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor | None]:
        """Return y_ref and d_y as they lie in memory, in one tensor where the weights are joined, and l.

        Args:
            x: the policy's input.
            reference_call: that of the reference, with the difference d.
        """
        low, base, change = self.products_of_difference(x, reference_call)
        for i, part in enumerate(self._split(change)):
            for _, low_of, factor in self._low_terms(low, [i]):
                add_low_rank_(part, low_of, factor)
        return tuple(base), tuple(change), low

    def products_of_difference(
        self, x: Tensor, reference_call: ReferenceCall
    ) -> tuple[Tensor | None, list[Tensor], list[Tensor]]:
        """Return l, and y_ref and W e(d) of each layer; of all side by side where their weights lie in one buffer."""
        assert reference_call.difference is not None
        rows, inputs = reference_call.rows, (reference_call.x, reference_call.difference)
        joined = self.joined or (joined_weight(self.weights, self.dtype) if len(self.weights) > 1 else None)
        layers = list(zip(self.weights, self.biases, strict=True))
        bases, changes = [], []
        for weight, bias in layers if joined is None else [(joined, self._joined_bias(x))]:
            if weight.input_form is not None:
                rows = quantized_in_lockstep(*inputs, weight.input_form) if rows is None else rows
                bases.append(weight.forward(rows.reference, bias))
                changes.append(weight.forward(rows.difference))
                continue
            assert isinstance(weight, MatrixWeight)
            matrix = DenseWeight(weight.matrix(self.dtype))
            bases.append(matrix.forward(reference_call.x, bias))
            changes.append(matrix.forward(reference_call.difference))
        return self.low(x), bases, changes

    def backward(
        self,
        grads: Sequence[Tensor],
        x: Tensor | None,
        low: Tensor | None,
        *,
        wants_input: bool,
        together: Tensor | None = None,
        prepared: QuantizedRows | None = None,
    ) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
        """Return dx, if it is wanted, all dA_i and all dB_i, as the methods below do.

        Without x there are no dA_i, without l no dB_i; each is None then. Other arguments as `input_gradient`.
        """
        h = self.down(grads)
        dx = self.input_gradient(grads, h, together, prepared) if wants_input else None
        return dx, self.a_gradients(h, x), self.b_gradients(grads, low)

    def down(self, grads: Sequence[Tensor]) -> Tensor | None:
        """Return h [T, sum of r_i], the outputs' gradients g_i [T, N_i] brought down to rank; None without adapters."""
        if self.a is None:
            return None
        h = grads[0].new_empty(grads[0].shape[0], self.a.shape[0])
        for g, b, rank in zip(grads, self.b, self.ranks, strict=True):
            if b is not None:
                torch.mm(g, b, out=h[:, rank])
        return h

    def input_gradient(
        self,
        grads: Sequence[Tensor],
        h: Tensor | None,
        together: Tensor | None = None,
        prepared: QuantizedRows | None = None,
    ) -> Tensor:
        """Return dx [T, K].

        Gradients of e4m3 layers whose weights lie in one buffer are brought to 8 bits as one row and multiplied once: a
        product for each would round each of them to 16 bits before the sum. int8 has no exponents, so there a
        row is not shared.

        Args:
            grads: g_i [T, N_i], contiguous rows.
            h: what `down` returns.
            together: all g_i side by side in one buffer [T, sum of N_i], where they lie so.
            prepared: of `together`, what `backward_prepared` of `whole` takes, where it was made together with it.
        """
        term = None if h is None or self.a is None else (h, self.a)
        if prepared is not None:
            assert isinstance(self.whole, EightBitWeight)
            return self.whole.backward_prepared(prepared, term)
        if self.joined is not None and together is not None:
            return gradient_and_term([together], [self.joined], term, self.dtype)
        joined = joined_weight(self.weights, self.dtype) if len(grads) > 1 else None
        if isinstance(joined, EightBitWeight) and joined.gradient_form.dtype.is_floating_point:
            return joined.backward_prepared(quantize_side_by_side(grads, joined.scale, form=joined.gradient_form), term)
        return gradient_and_term(grads, self.weights, term, self.dtype)

    def a_gradients(self, h: Tensor | None, x: Tensor | None) -> list[Tensor | None]:
        """Return dA_i [r_i, K], float32 or better; None for layers without adapter, and for all without x or h."""
        if h is None or x is None:
            return [None] * len(self.weights)
        stacked = precise_product(h.t(), x)
        return [
            None if adapter is None else _scaled(stacked[rank], adapter.scale)
            for adapter, rank in zip(self.adapters, self.ranks, strict=True)
        ]

    def b_gradients(self, grads: Sequence[Tensor], low: Tensor | None) -> list[Tensor | None]:
        """Return dB_i [N_i, r_i], float32 or better; None for layers without adapter, and for all without l."""
        return [
            None if low is None or b is None else precise_product(g.t(), low[:, rank])
            for g, b, rank in zip(grads, self.b, self.ranks, strict=True)
        ]

    def _stacked_a(self, rank: int, dtype: torch.dtype) -> Tensor:
        """Return S [sum of r_i, K] in the dtype of the arithmetic, scaled before it is rounded."""
        found = [adapter for adapter in self.adapters if adapter is not None]
        stack = torch.empty(rank, found[0].a.shape[1], dtype=dtype, device=found[0].a.device)
        for adapter, rows in zip(self.adapters, self.ranks, strict=True):
            if adapter is not None:
                torch.mul(adapter.a, adapter.scale, out=stack[rows])
        return stack

    def _products(self, x: Tensor) -> list[tuple[FrozenWeight, Tensor | None, Sequence[int]]]:
        """Return the weights that products are taken with, their biases, and the layers whose outputs each gives."""
        if self.joined is not None:
            return [(self.joined, self._joined_bias(x), range(len(self.weights)))]
        layers = zip(self.weights, self.biases, strict=True)
        return [(weight, bias, [i]) for i, (weight, bias) in enumerate(layers)]

    def _split(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the output of each layer, a view where all lie side by side."""
        return list(outputs) if len(outputs) == len(self.sizes) else list(outputs[0].split(self.sizes, dim=1))

    def _joined_bias(self, x: Tensor) -> Tensor | None:
        """Return the biases one after the other, so that joined and single products round alike; None without any."""
        if all(bias is None for bias in self.biases):
            return None
        parts = zip(self.biases, self.sizes, strict=True)
        return torch.cat([x.new_zeros(size) if bias is None else bias for bias, size in parts])

    def low(self, x: Tensor) -> Tensor | None:
        """Return l [T, sum of r_i] of an input; None without adapters."""
        return None if self.a is None else F.linear(x, self.a)

    def _low_terms(self, low: Tensor | None, layers: Iterable[int]) -> list[LowTerm]:
        """Return what the adapters of `layers` add to their outputs, when these lie side by side."""
        terms: list[LowTerm] = []
        first = 0
        for i in layers:
            columns, b = slice(first, first + self.sizes[i]), self.b[i]
            first = columns.stop
            if low is not None and b is not None:
                terms.append((columns, low[:, self.ranks[i]], b.t()))
        return terms


def _scaled(gradient: Tensor, scale: float) -> Tensor:
    return gradient if scale == 1.0 else gradient * scale
