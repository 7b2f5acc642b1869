"""The Triton kernels of shared-prefix attention against the reference in float64, in Triton's interpreter."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch
from absent_gpu import printed_by

from wishbone.ops.prefix_attention import Document, PrefixLayout, prefix_attention, prefix_attention_in_lockstep

LAYOUTS = {
    "pairs and padding": PrefixLayout((Document(0, 20, (47, 70)), Document(70, 71, (80, 120)), Document(120, 128))),
    "one long pair": PrefixLayout((Document(0, 40, (84, 128)),)),
    "no stem, and an empty branch": PrefixLayout((Document(0, 0, (50, 50)), Document(50, 60, (60, 128)))),
}


def gradients(layout: PrefixLayout, heads: tuple[int, int], size: int, dtype: torch.dtype, **options):
    """Output and gradients of the kernels, and those of the reference on the same numbers in float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, n, layout.length, size) for n in (heads[0], heads[1], heads[1])]
    inputs = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    weights = torch.randn(shapes[0], generator=generator).to(dtype)
    sinks = options.pop("sinks", None)
    trained = inputs if sinks is None else [*inputs, sinks.clone().requires_grad_()]
    out = prefix_attention(*inputs, layout, scale=0.3, backend="triton", sinks=[*trained, None][3], **options)
    got = out, *torch.autograd.grad((out * weights).sum(), trained)
    exact = [tensor.detach().double().requires_grad_() for tensor in trained]
    sinks = [*exact, None][3]
    reference = prefix_attention(*exact[:3], layout, scale=0.3, backend="reference", sinks=sinks, **options)
    return got, (reference, *torch.autograd.grad((reference * weights.double()).sum(), exact))


@pytest.mark.kernels(on_gpus=False)
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_and_gradients(layout: str, window: int | None, softcap: float | None):
    for got, exact in zip(
        *gradients(LAYOUTS[layout], (4, 2), 16, torch.float32, window=window, softcap=softcap), strict=True
    ):
        assert (got - exact).norm() <= 1e-6 * exact.norm()


@pytest.mark.kernels(on_gpus=False)
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 9])
def test_sinks_and_slopes(window: int | None, softcap: float | None):
    sinks, slopes = torch.tensor([-1.0, 0.5, 3.0, 0.0]), torch.tensor([0.5, 0.25, 0.01, 1.5])
    options = {"window": window, "softcap": softcap, "sinks": sinks, "slopes": slopes}
    got, exact = gradients(LAYOUTS["pairs and padding"], (4, 2), 16, torch.float32, **options)
    assert len(got) == len(exact) == 5
    for value, expected in zip(got, exact, strict=True):
        assert (value - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.kernels(on_gpus=False)
@pytest.mark.parametrize(("heads", "packed"), [((2, 2), 1), ((3, 1), 1), ((4, 2), 2), ((8, 1), 4)])
def test_groups_of_heads_and_other_tiles(heads: tuple[int, int], packed: int, monkeypatch: pytest.MonkeyPatch):
    from wishbone.ops.prefix_attention.tiles import Tile, Tiles

    of_queries, of_keys = Tile(32, packed, 16, 4, 1, 128), Tile(16, 1, 32, 4, 1)
    tiles = Tiles(of_queries, of_queries, of_keys)
    monkeypatch.setattr("wishbone.ops.prefix_attention.triton.tiles_for", lambda *_: tiles)
    numbers = {name: torch.linspace(0.1, 2.0, heads[0]) for name in ("sinks", "slopes")}
    for options in ({}, {**numbers, "window": 9}):
        given = gradients(LAYOUTS["pairs and padding"], heads, 32, torch.float32, **options)
        for got, exact in zip(*given, strict=True):
            assert (got - exact).norm() <= 1e-6 * exact.norm()


@pytest.mark.kernels(on_gpus=False)
@pytest.mark.parametrize(("size", "values"), [(2, 2), (8, 8), (24, 24), (12, 20), (40, 16)])
def test_heads_of_other_sizes_are_padded(size: int, values: int):
    layout = LAYOUTS["pairs and padding"]
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, layout.length, last) for heads, last in ((4, size), (2, size), (2, values))]
    inputs = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    results = []
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        own = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
        out = prefix_attention(*own, layout, scale=0.3, backend=backend)
        assert out.shape == (1, 4, layout.length, values)
        results.append((out, *torch.autograd.grad(out.square().sum(), own)))
    for got, exact in zip(*results, strict=True):
        assert (got - exact).norm() <= 1e-6 * exact.norm()


@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
def test_the_score_of_an_unseen_key_has_exact_products():
    """Where a query sees nothing of its first block, that score is taken off itself, fused with the product or not."""
    from wishbone.ops.prefix_attention.kernels import UNSEEN

    factors = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal((UNSEEN.value * factors).double(), UNSEEN.value * factors.double())


@pytest.mark.kernels(on_gpus=False)
def test_memory_has_tokens_first_as_layers_want_it():
    (out, *_), _ = gradients(LAYOUTS["one long pair"], (2, 1), 16, torch.float32)
    assert out.transpose(1, 2).is_contiguous()


@pytest.mark.kernels(on_gpus=False)
@pytest.mark.parametrize(("size", "head"), [(0.0, 24), (1e-3, 16)])
def test_policy_and_reference_differ_by_what_they_do_before_they_are_rounded(size: float, head: int):
    layout = LAYOUTS["pairs and padding"]
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, n, layout.length, head) for n in (4, 2, 2)]
    reference = tuple(torch.randn(shape, generator=generator).to(torch.float16) for shape in shapes)
    policy = tuple((x + size * torch.randn(x.shape, generator=generator)).to(torch.float16) for x in reference)
    leaves = tuple(x.clone().requires_grad_() for x in policy)
    own, other, difference = prefix_attention_in_lockstep(leaves, reference, layout, scale=0.3, backend="triton")
    apart = [prefix_attention(*x, layout, scale=0.3, backend="triton") for x in (policy, reference)]
    assert torch.equal(own, apart[0]) and torch.equal(other, apart[1])
    exact = [
        prefix_attention(*(t.double() for t in x), layout, scale=0.3, backend="reference") for x in (policy, reference)
    ]
    wanted = exact[0] - exact[1]
    rounded = (own.double() - other.double() - wanted).norm()
    assert (difference - wanted).norm() <= 0.6 * rounded, "what is left is the rounding of probabilities"
    assert own.requires_grad and not other.requires_grad and not difference.requires_grad
    own.square().sum().backward()
    assert all(x.grad is not None for x in leaves)


def test_other_backends_keep_no_unrounded_output():
    layout = LAYOUTS["pairs and padding"]
    states = tuple(torch.randn(1, 2, layout.length, 8, dtype=torch.bfloat16) for _ in range(3))
    own, other, difference = prefix_attention_in_lockstep(states, states, layout, scale=0.3, backend="sdpa")
    assert difference is None and torch.equal(own, other)


@pytest.mark.kernels(on_gpus=False)
def test_what_the_kernels_cannot_do_is_refused():
    q = torch.randn(1, 1, 100, 16)
    with pytest.raises(ValueError, match="not a multiple of 128"):
        prefix_attention(q, q, q, PrefixLayout((Document(0, 100),)), scale=1.0, backend="triton")
    q = torch.randn(1, 1, 128, 257)
    with pytest.raises(ValueError, match="a head dimension of 257 is larger than 256"):
        prefix_attention(q, q, q, PrefixLayout((Document(0, 128),)), scale=1.0, backend="triton")


@pytest.mark.skipif(find_spec("triton") is None or "TRITON_INTERPRET" in os.environ, reason="needs Triton's compiler")
@pytest.mark.parametrize(
    ("capability", "shared_bytes", "heads"),
    [
        pytest.param(75, 65_536, ["128 float16"], marks=pytest.mark.slow, id="T4"),
        pytest.param(75, 65_536, ["64 float32"], marks=pytest.mark.long, id="T4 in float32"),
        pytest.param(89, 101_376, ["128 float16"], marks=pytest.mark.long, id="RTX 40 and L4"),
    ],
)
def test_compiled_kernels_fit_into_the_shared_memory_of_gpus_that_are_not_here(
    capability: int, shared_bytes: int, heads: list[str]
):
    taken = printed_by("attention_shared_memory.py", capability, shared_bytes, *" ".join(heads).split())
    assert list(taken) == heads
    assert all(size <= shared_bytes for size in taken.values()), taken


@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
def test_tiles_fit_into_shared_memory():
    from wishbone.ops.prefix_attention.tiles import tiles_for

    for size in (16, 32, 64, 128, 256):
        for itemsize in (2, 4):
            for group, shared, capability in ((1, 101_376, (8, 9)), (4, 166_912, (8, 0)), (4, 232_448, (9, 0))):
                tiles = tiles_for(size, itemsize, group, shared, capability)
                for tile, held in ((tiles.forward, 1), (tiles.query_gradient, 2)):
                    rows = held * tile.tokens * tile.heads + tile.stages * 2 * tile.keys
                    programs = 1 if tile.registers is None else 65_536 // (32 * tile.warps * tile.registers)
                    assert programs * rows * size * itemsize <= shared
                tile = tiles.key_gradient
                assert (2 * tile.keys + tile.stages * 2 * tile.tokens) * size * itemsize <= shared
