"""Whether each layer of a model gives one output for a packed row and for plain sequences, from the same input.

In 16 bits, two ways to compute the same differ by rounding in every layer, and the layers after it make more of that:
in a model of 80 layers some 10 %, as much as a mask that is wrong in one layer. So where hidden states at the end
differ, layers are judged one at a time. The plain run's input of a layer is put in the place of the packed run's, and
what is left is one layer's rounding.

A router of experts decides between values that rounding may swap, and a token that goes to another expert comes back
far off. So what a layer's experts take is compared for all tokens, and what the layer gives for those tokens that both
runs send to the same experts; most must be (`MOST_ELSEWHERE`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wishbone.data.batch import PlainBatch, SharedPrefixBatch, TokenizedPair
from wishbone.fused.parts import part_of
from wishbone.policy.policy import Policy

Hook = Callable[[Tensor], Tensor | None]
MOST_ELSEWHERE = 0.25
"""Largest share of a layer's tokens that rounding may send to other experts."""


class _Output(NamedTuple):
    """What a layer gives for some tokens.

    Attributes:
        hidden: [tokens, hidden_size].
        routed: for each of its calls of experts their inputs [tokens, hidden_size] and choices [tokens, k], in order.
    """

    hidden: Tensor
    routed: list[tuple[Tensor, Tensor]]

    def of(self, places: Tensor | slice) -> _Output:
        """Return it for some of the tokens."""
        return _Output(self.hidden[places], [(x[places], chosen[places]) for x, chosen in self.routed])

    def difference(self, other: _Output) -> Tensor:
        """Return the largest relative difference from what another run gives."""
        found, same = [], torch.ones_like(self.hidden[:, 0], dtype=torch.bool)
        for (x, chosen), (other_x, other_chosen) in zip(self.routed, other.routed, strict=True):
            found.append(_relative(x, other_x))
            same &= (chosen == other_chosen).all(-1)
        if float((~same).float().mean()) > MOST_ELSEWHERE:
            same.fill_(True)
        return torch.stack([*found, _relative(self.hidden[same], other.hidden[same])]).max()


def worst_layer(packed: Policy, plain: Policy, pairs: Sequence[TokenizedPair]) -> float | None:
    """Return the largest relative difference of a layer's outputs; None where the layers cannot be compared.

    Args:
        packed: the model with pairs in one row.
        plain: the same model with a row for each sequence.
        pairs: whose sequences are all equally long.
    """
    row, rows = packed.collate(pairs), plain.collate(pairs)
    assert isinstance(row, SharedPrefixBatch) and isinstance(rows, PlainBatch)
    places = _places(row, rows.input_ids.shape[1]).to(packed.device)
    used, inputs, outputs = len(places), list[Tensor](), list[_Output]()

    def note(x: Tensor) -> None:
        inputs.append(x.flatten(0, -2)[places])

    with _seen(plain.layers, note, outputs.append), plain.running():
        plain.hidden_states(rows)
    differences: list[Tensor] = []

    def replaced(x: Tensor) -> Tensor:
        return torch.cat([inputs.pop(0)[None], x[:, used:]], 1)

    def compare(found: _Output) -> None:
        differences.append(found.of(slice(used)).difference(outputs.pop(0).of(places)))

    calls = len(outputs)
    with _seen(packed.layers, replaced, compare), packed.running():
        packed.hidden_states(row)
    if not differences or len(differences) != calls or len(differences) != len(packed.layers):
        return None
    return float(torch.stack(differences).max())


def _relative(value: Tensor, expected: Tensor) -> Tensor:
    difference: Tensor = (value.double() - expected.double()).norm() / expected.double().norm()
    return difference


def _places(row: SharedPrefixBatch, width: int) -> Tensor:
    """For each token of a packed row, its place among the tokens of plain rows of `width`."""
    places: list[int] = []
    for pair, document in enumerate(row.layout.documents[: len(row.pairs)]):
        stem = document.stem_end - document.start
        places += range(2 * pair * width, 2 * pair * width + stem)
        for branch, (start, end) in enumerate(document.branches()):
            first = (2 * pair + branch) * width + stem
            places += range(first, first + end - start)
    return torch.tensor(places)


@contextmanager
def _seen(layers: Sequence[nn.Module], before: Hook, after: Callable[[_Output], None]) -> Iterator[None]:
    """Context in which functions see what layers take and give; what `before` returns is taken."""
    routed: list[tuple[Tensor, Tensor]] = []

    def take(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        routed.clear()
        found = before(args[0] if args else kwargs["hidden_states"])
        if found is None:
            return args, kwargs
        return ((found, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": found})

    def route(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
        chosen = [one for one in tensors if not one.is_floating_point()]
        if chosen:  # some experts take their tokens sorted already
            routed.append((tensors[0].flatten(0, -2), chosen[0].flatten(0, -2).sort(-1).values))

    def give(_: nn.Module, args: Any, output: Any) -> None:
        hidden = output if isinstance(output, Tensor) else output[0]
        hidden = hidden.flatten(0, -2)
        after(_Output(hidden, [one for one in routed if len(one[0]) == len(one[1]) == len(hidden)]))

    experts = [one for layer in layers for one in layer.modules() if part_of(one) == "experts"]
    handles = [layer.register_forward_pre_hook(take, with_kwargs=True) for layer in layers]
    handles += [one.register_forward_pre_hook(route, with_kwargs=True) for one in experts]
    handles += [layer.register_forward_hook(give) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
