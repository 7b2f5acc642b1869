"""A packed row as two batches of padded sequences: all stems, and all branches, which start where their stem ended.

Kernels of other libraries take a batch of sequences and a state to start each from, and return the states at the end.
Two calls of such a kernel run a row. What fills up a sequence must leave the state as it is: zeros do, where the decay
is given by its logarithm or by a time step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wishbone.ops.prefix_attention.layout import PrefixLayout
from wishbone.ops.prefix_chunks import taken
from wishbone.ops.to_device import to_device

Scan = Callable[[Sequence[Tensor], Tensor | None], tuple[Tensor, Tensor]]
"""Given inputs [sequences, tokens, ...] and the states to start from, returns outputs and the states at the end."""


@dataclass(frozen=True)
class PrefixBatches:
    """Where the tokens of one row lie in two padded batches, one behind the other.

    Attributes:
        stems, branches: sequences and tokens of each batch; no sequence is empty.
        place: [tokens], int64: where each token of the row lies among the tokens of both.
        stem_of: [branches], int64: the stem of each branch; their number for a stem without tokens.
    """

    stems: tuple[int, int]
    branches: tuple[int, int]
    place: Tensor
    stem_of: Tensor

    def scan(self, inputs: Sequence[Tensor], scan: Scan) -> Tensor:
        """Return the outputs of a row, [1, tokens, ...], of inputs [1, tokens, ...].

        Args:
            inputs: of the row.
            scan: runs one batch; it is called for the stems first.
        """
        shapes = [shape for shape in (self.stems, self.branches) if shape[0]]
        sizes = [count * width for count, width in shapes]
        padded = [x.new_zeros(sum(sizes), *x.shape[2:]).index_copy(0, self.place, x[0]).split(sizes) for x in inputs]
        outputs: list[Tensor] = []
        state: Tensor | None = None
        for at, shape in enumerate(shapes):
            if at:
                assert state is not None
                state = torch.cat([state, torch.zeros_like(state[:1])]).index_select(0, self.stem_of)
            out, state = scan([x[at].unflatten(0, shape) for x in padded], state)
            outputs.append(out.flatten(0, 1))
        return taken(torch.cat(outputs), self.place)[None]


def prefix_batches(layout: PrefixLayout, device: torch.device) -> PrefixBatches:
    """Return the batches of a row on `device`, made once."""
    key = ("batches", device)
    if key not in layout._cache:
        layout._cache[key] = _batches(layout, device)
    batches = layout._cache[key]
    assert isinstance(batches, PrefixBatches)
    return batches


def _batches(layout: PrefixLayout, device: torch.device) -> PrefixBatches:
    stems: list[tuple[int, int]] = []
    branches: list[tuple[int, int]] = []
    stem_of: list[int] = []
    without = sum(document.stem_end > document.start for document in layout.documents)
    for document in layout.documents:
        has_stem = document.stem_end > document.start
        for start, end in document.branches():
            if end > start:
                branches.append((start, end))
                stem_of.append(len(stems) if has_stem else without)
        if has_stem:
            stems.append((document.start, document.stem_end))
    place = np.empty(layout.length, dtype=np.int64)
    first, shapes = 0, []
    for segments in (stems, branches):
        width = max((end - start for start, end in segments), default=0)
        for at, (start, end) in enumerate(segments):
            place[start:end] = first + at * width + np.arange(end - start)
        first += len(segments) * width
        shapes.append((len(segments), width))
    tables = [to_device(torch.from_numpy(one), device) for one in (place, np.array(stem_of, dtype=np.int64))]
    return PrefixBatches(shapes[0], shapes[1], *tables)
