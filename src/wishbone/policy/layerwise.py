"""Whether each layer of a model gives one output for a packed row and for plain sequences, from the same input.

In 16 bits, two ways to compute the same differ by rounding in every layer, and the layers after it make more of that:
in a model of 80 layers some 10 %, as much as a mask that is wrong in one layer. So where hidden states at the end
differ, layers are judged one at a time. The plain run's input of a layer is put in the place of the packed run's, and
what is left is one layer's rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from wishbone.data.batch import PlainBatch, SharedPrefixBatch, TokenizedPair
from wishbone.policy.policy import Policy

Hook = Callable[[Tensor], Tensor | None]


def worst_layer(packed: Policy, plain: Policy, pairs: Sequence[TokenizedPair]) -> float | None:
    """Return the largest relative difference of a layer's outputs; None where the layers cannot be judged.

    Args:
        packed: the model with pairs in one row.
        plain: the same model with a row for each sequence.
        pairs: whose sequences are all equally long.
    """
    row, rows = packed.collate(pairs), plain.collate(pairs)
    assert isinstance(row, SharedPrefixBatch) and isinstance(rows, PlainBatch)
    places = _places(row, rows.input_ids.shape[1]).to(packed.device)
    used, inputs, outputs = len(places), list[Tensor](), list[Tensor]()

    def note(into: list[Tensor], x: Tensor) -> None:
        into.append(x.flatten(0, -2)[places])

    with _seen(plain.layers, lambda x: note(inputs, x), lambda y: note(outputs, y)), plain.running():
        plain.hidden_states(rows)
    differences: list[Tensor] = []

    def replaced(x: Tensor) -> Tensor:
        return torch.cat([inputs.pop(0)[None], x[:, used:]], 1)

    def compare(y: Tensor) -> None:
        own, other = y[0, :used].double(), outputs.pop(0).double()
        differences.append((own - other).norm() / other.norm())

    calls = len(outputs)
    with _seen(packed.layers, replaced, compare), packed.running():
        packed.hidden_states(row)
    if not differences or len(differences) != calls or len(differences) != len(packed.layers):
        return None
    return float(torch.stack(differences).max())


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
def _seen(layers: Sequence[nn.Module], before: Hook, after: Hook) -> Iterator[None]:
    """Context in which functions see the hidden states that layers take and give; what `before` returns is taken."""

    def take(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        found = before(args[0] if args else kwargs["hidden_states"])
        if found is None:
            return args, kwargs
        return ((found, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": found})

    def give(_: nn.Module, args: Any, output: Any) -> None:
        after(output if isinstance(output, Tensor) else output[0])

    handles = [layer.register_forward_pre_hook(take, with_kwargs=True) for layer in layers]
    handles += [layer.register_forward_hook(give) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
