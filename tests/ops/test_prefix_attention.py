"""Shared-prefix attention against textbook attention on plain sequences, values and gradients."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from torch import Tensor

from wishbone.ops.prefix_attention import Document, PrefixLayout, prefix_attention
from wishbone.ops.prefix_attention.blocks import visible_blocks
from wishbone.ops.prefix_attention.tables import BlockKind, block_tables

LAYOUT = PrefixLayout(
    (
        Document(0, 5, (9, 16)),
        Document(16, 17, (18, 30)),
        Document(30, 33),
        Document(33, 40, (40, 47)),
        Document(47, 47, (52, 55)),
    )
)
HEADS, KEY_VALUE_HEADS, HEAD_DIM = 6, 2, 8


def plain_layout(lengths: list[int]) -> PrefixLayout:
    """Plain causal sequences, one after the other."""
    ends = list(accumulate(lengths))
    return PrefixLayout(tuple(Document(end - n, end) for n, end in zip(lengths, ends, strict=True)))


def sequences(layout: PrefixLayout) -> list[list[int]]:
    """Row indices of every plain sequence: stem and one branch, in order."""
    return [
        list(range(d.start, d.stem_end)) + list(range(start, end))
        for d in layout.documents
        for start, end in (d.branches() if d.branch_ends else [(d.stem_end, d.stem_end)])
    ]


def textbook(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
) -> Tensor:
    """Causal attention of one sequence, one query and one head at a time."""
    heads = []
    for h in range(q.shape[0]):
        group = h // (q.shape[0] // k.shape[0])
        rows = []
        for i in range(q.shape[1]):
            first = 0 if window is None else max(0, i - window + 1)
            scores = (k[group, first : i + 1] @ q[h, i]) * scale
            if softcap is not None:
                scores = torch.tanh(scores / softcap) * softcap
            if slopes is not None:
                scores = scores - slopes[h] * torch.arange(i - first, -1, -1)
            weights = scores.exp() / (scores.exp().sum() + (0 if sinks is None else sinks[h].exp()))
            rows.append(weights @ v[group, first : i + 1])
        heads.append(torch.stack(rows))
    return torch.stack(heads)


def inputs(layout: PrefixLayout, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [
        torch.randn(1, heads, layout.length, HEAD_DIM, generator=generator, dtype=dtype).requires_grad_()
        for heads in (HEADS, KEY_VALUE_HEADS, KEY_VALUE_HEADS)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 1, 4, 9, 100])
def test_equals_plain_sequences(backend: str, window: int | None, softcap: float | None) -> None:
    compare(backend, window, softcap)


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize(("sinks", "slopes"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.slow
def test_sinks_and_slopes(backend: str, window: int | None, sinks: bool, slopes: bool) -> None:
    a_head = torch.linspace(-1, 2, HEADS, dtype=torch.float64)
    compare(backend, window, None, a_head.clone().requires_grad_() if sinks else None, a_head + 1.2 if slopes else None)


def compare(
    backend: str,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
) -> None:
    q, k, v = inputs(LAYOUT)
    trained = (q, k, v) if sinks is None else (q, k, v, sinks)
    weights = torch.randn(
        HEADS, LAYOUT.length, HEAD_DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    options = {"window": window, "softcap": softcap, "sinks": sinks, "slopes": slopes}
    out = prefix_attention(q, k, v, LAYOUT, scale=0.3, backend=backend, **options)
    got = torch.autograd.grad((out[0] * weights).sum(), trained)

    expected_out = torch.zeros_like(out[0])
    loss = torch.zeros((), dtype=torch.float64)
    for document_sequence in sequences(LAYOUT):
        if not document_sequence:
            continue
        index = torch.tensor(document_sequence)
        part = textbook(q[0][:, index], k[0][:, index], v[0][:, index], 0.3, **options)
        expected_out[:, index] = part.detach()
        counted = torch.tensor([1.0 / sum(i in s for s in sequences(LAYOUT)) for i in document_sequence])
        loss = loss + (part * weights[:, index] * counted[:, None].double()).sum()
    expected = torch.autograd.grad(loss, trained)

    assert (out[0] - expected_out).norm() <= 1e-9 * expected_out.norm()
    for value, wanted in zip(got, expected, strict=True):
        assert (value - wanted).norm() <= 1e-9 * wanted.norm() + 1e-13


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_siblings_and_neighbours_are_invisible(backend: str) -> None:
    q, k, v = inputs(LAYOUT)
    before = prefix_attention(q, k, v, LAYOUT, scale=1.0, backend=backend)
    with torch.no_grad():
        for tensor in (k, v):
            tensor[:, :, 9:16] += 3.0
    after = prefix_attention(q, k, v, LAYOUT, scale=1.0, backend=backend)
    changed = (before != after).any(dim=1).any(dim=-1)[0].nonzero()[:, 0].tolist()
    assert changed == list(range(9, 16))


def test_plain_layout_is_causal_attention() -> None:
    layout = plain_layout([6, 3])
    q, k, v = inputs(layout)
    out = prefix_attention(q, k, v, layout, scale=0.5)
    second = torch.nn.functional.scaled_dot_product_attention(
        q[:, :, 6:], k[:, :, 6:], v[:, :, 6:], is_causal=True, scale=0.5, enable_gqa=True
    )
    torch.testing.assert_close(out[:, :, 6:], second)


@pytest.mark.parametrize(
    "documents",
    [(Document(1, 4),), (Document(0, 4), Document(5, 6)), (Document(0, 4, (3,)),), (Document(0, 4), Document(3, 6))],
)
def test_layout_refuses_gaps_and_overlaps(documents: tuple[Document, ...]) -> None:
    with pytest.raises(ValueError, match="do not continue the row"):
        PrefixLayout(documents)


def test_refuses_a_row_that_is_not_the_layouts() -> None:
    q, k, v = inputs(plain_layout([4]))
    with pytest.raises(ValueError, match="not one row of 5 tokens"):
        prefix_attention(q, k, v, plain_layout([5]), scale=1.0)
    with pytest.raises(ValueError, match="not one of auto, reference, sdpa, triton"):
        prefix_attention(q, k, v, plain_layout([4]), scale=1.0, backend="flash")  # type: ignore[arg-type]


def block_truth(layout: PrefixLayout, window: int | None, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    tokens = torch.arange(layout.length)
    seen = layout.visible(tokens[:, None], tokens[None, :], layout.token_tables(torch.device("cpu")), window)
    count = seen.view(layout.length // rows, rows, layout.length // columns, columns).sum((1, 3))
    return count > 0, count == rows * columns


@pytest.mark.parametrize("window", [None, 1, 50, 300])
@pytest.mark.parametrize(("rows", "columns"), [(128, 128), (128, 64), (32, 128)])
def test_block_lists_are_those_of_the_mask(window: int | None, rows: int, columns: int) -> None:
    layout = PrefixLayout((Document(0, 300, (520, 650)), Document(650, 660, (1100, 1500)), Document(1500, 1536)))
    visible, full = visible_blocks(layout, window, rows=rows, columns=columns)
    any_truth, full_truth = block_truth(layout, window, rows, columns)
    assert (torch.from_numpy(visible) >= any_truth).all()
    assert (torch.from_numpy(full) <= full_truth).all()
    assert torch.equal(torch.from_numpy(visible), any_truth)
    if window is None:
        assert torch.equal(torch.from_numpy(full), full_truth)


@pytest.mark.parametrize("backend", ["auto", "sdpa", "reference"])
def test_autocast_decides_the_dtype_whatever_the_inputs_have(backend: str) -> None:
    """A family whose norms leave queries and keys in float32 hands over values in another dtype."""
    query, key, value = inputs(LAYOUT, torch.float32)
    plain = prefix_attention(query, key, value, LAYOUT, scale=0.3, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = prefix_attention(query, key, value.bfloat16(), LAYOUT, scale=0.3, backend=backend)
        assert prefix_attention(*(t.double() for t in (query, key, value)), LAYOUT, scale=0.3).dtype == torch.float64
    assert mixed.dtype == torch.bfloat16
    assert (mixed - plain).norm() <= 2e-2 * plain.norm()


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("columns", [16, 32, 64, 128])
def test_tables_combined_from_finer_blocks_are_those_of_the_row(columns: int, window: int | None) -> None:
    layout = PrefixLayout((Document(0, 70, (150, 300)), Document(300, 310, (400, 640))))
    kind = BlockKind(window, 64, columns, by_keys=False, device=torch.device("cpu"))
    visible, full = visible_blocks(layout, window, rows=64, columns=columns)
    blocks, full_count, count, order = (table.tolist() for table in block_tables(layout, kind).parts())
    assert sorted(blocks) == list(range(len(visible)))
    assert [n.bit_length() for n in count] == sorted((n.bit_length() for n in count), reverse=True)
    for at, row in enumerate(blocks):
        assert order[at][: full_count[at]] == full[row].nonzero()[0].tolist()
        assert order[at][full_count[at] : count[at]] == (visible & ~full)[row].nonzero()[0].tolist()


@pytest.mark.parametrize("blocks", range(1, 9))
def test_tables_are_aligned_whatever_the_length(blocks: int) -> None:
    """Otherwise a row of another length would compile the kernels again."""
    layout = PrefixLayout((Document(0, 40, (60, 128 * blocks)),))
    device = torch.device("cpu")
    for by_keys in (False, True):
        for columns in (32, 64):
            tables = block_tables(layout, BlockKind(None, 64, columns, by_keys, device)).parts()
            assert not any(table.data_ptr() % 16 for table in tables)
    assert not any(table.data_ptr() % 16 for table in layout.token_tables(device).buffer.unbind())


TOGETHER = ((1, 4), (4, 5), (31, 33), (33, 39))
"""Spans of stems of `LAYOUT`: two beside each other, one at a document's end, one longer than the window."""


def seen_together(layout: PrefixLayout, sequence: list[int], query: int, window: int | None) -> list[int]:
    """Places in a sequence that a query sees: the earlier ones and its span, as far as the window goes back."""
    places = set(range(query + 1))
    for start, end in layout.spans(window):
        if start <= sequence[query] < end:
            places |= {sequence.index(token) for token in range(start, end)}
    return sorted(place for place in places if window is None or query - place < window)


@pytest.mark.parametrize("backend", ["reference", "sdpa", "auto"])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("with_window", [False, True])
@pytest.mark.slow
def test_spans_of_a_stem_whose_tokens_see_each_other(backend: str, window: int | None, with_window: bool) -> None:
    layout = PrefixLayout(LAYOUT.documents, TOGETHER, with_window)
    q, k, v = inputs(layout)
    out = prefix_attention(q, k, v, layout, scale=0.3, window=window, backend=backend)
    expected = torch.full_like(out, torch.nan)
    for sequence in sequences(layout):
        for at, token in enumerate(sequence):
            keys = [sequence[place] for place in seen_together(layout, sequence, at, window)]
            for head in range(HEADS):
                group = head // (HEADS // KEY_VALUE_HEADS)
                weights = (k[0, group, keys] @ q[0, head, token] * 0.3).softmax(0)
                expected[0, head, token] = weights @ v[0, group, keys]
    torch.testing.assert_close(out, expected)
    gradients = torch.autograd.grad(out.square().sum(), (q, k, v), retain_graph=True)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected.square().sum(), (q, k, v)))


def test_kernels_refuse_spans_and_spans_lie_in_stems() -> None:
    layout = PrefixLayout(LAYOUT.documents, TOGETHER)
    with pytest.raises(NotImplementedError, match="see each other"):
        prefix_attention(*inputs(layout), layout, scale=1.0, backend="triton")
    with pytest.raises(ValueError, match="lie in no stem"):
        PrefixLayout(LAYOUT.documents, ((4, 6),))
