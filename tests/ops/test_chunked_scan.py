"""The scans by Triton kernels against their definitions in float64: values and gradients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from wishbone.ops.gated_delta_rule import gated_delta_rule_reference
from wishbone.ops.prefix_attention import Document, PrefixLayout
from wishbone.ops.prefix_attention.tables import overwrite_tables, tables_hold
from wishbone.ops.state_space_scan import state_space_scan_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYOUT = PrefixLayout(
    (
        Document(0, 18, (23, 24)),  # two chunks, then branches of five tokens and of one
        Document(24, 25, (28, 28, 30)),  # an empty branch between others
        Document(30, 33),
        Document(33, 33, (35, 38)),  # an empty stem
    )
)
Op = Callable[[list[Tensor]], Tensor]


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 16 tokens, which the interpreter runs sooner, keys and values in parts, one head at a time."""
    from wishbone.ops.chunked_scan import triton

    for name in ("CHUNK", "CARRIED_V", "OUTPUT_V", "GRADIENT_V", "GRADIENT_K"):
        monkeypatch.setattr(triton, name, 16)
    monkeypatch.setattr(triton, "MOST_STATE_BYTES", 1)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(1, LAYOUT.length, *shape, generator=generator, dtype=torch.float64)


def results(op: Op, leaves: list[Tensor], dtype: torch.dtype, device: str) -> list[Tensor]:
    leaves = [leaf.to(device, dtype).requires_grad_() for leaf in leaves]
    out = op(leaves)
    weights = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    return [out, *torch.autograd.grad((out * weights).sum(), leaves)]


def assert_close(op: Op, reference: Op, leaves: list[Tensor]) -> None:
    expected = results(reference, leaves, torch.float64, "cpu")
    for i, (got, exact) in enumerate(zip(results(op, leaves, torch.float32, DEVICE), expected, strict=True)):
        error = (got.cpu().double() - exact).norm() / exact.norm()
        assert got.shape == exact.shape and error <= 1e-5, f"result {i}: {error:.1e}"


@pytest.mark.kernels
@pytest.mark.slow
@pytest.mark.parametrize("unit", [True, pytest.param(False, marks=pytest.mark.long)])
def test_delta_rule_is_its_definition(unit: bool, short_chunks: None) -> None:
    from wishbone.ops.chunked_scan.triton import Rule, chunked_scan

    g = torch.Generator().manual_seed(0)
    keys = [normal(g, 1, 20) * 0.3, normal(g, 1, 20) * 0.3]
    leaves = [*keys, normal(g, 2, 24), -normal(g, 2).exp(), normal(g, 2).sigmoid()]
    rule = Rule(20**-0.5, delta=True, unit=unit)
    assert_close(
        lambda x: chunked_scan(*(one[0] for one in x), LAYOUT, rule)[None],
        lambda x: gated_delta_rule_reference(*x, LAYOUT, unit=unit),
        leaves,
    )


@pytest.mark.kernels
@pytest.mark.slow
def test_state_space_is_its_definition(short_chunks: None) -> None:
    from wishbone.ops.chunked_scan.triton import Rule, chunked_scan

    def by_kernels(leaves: list[Tensor]) -> Tensor:
        x, dt, rate, write, read, skip = leaves
        return chunked_scan(read[0], write[0], x[0], (dt * rate)[0], dt[0], LAYOUT, Rule(1.0), skip)[None]

    g = torch.Generator().manual_seed(0)
    leaves = [normal(g, 2, 24), normal(g, 2).exp(), -normal(g, 2)[0, 0].exp(), normal(g, 1, 20), normal(g, 1, 20)]
    leaves.append(normal(g, 2)[0, 0])
    assert_close(by_kernels, lambda x: state_space_scan_reference(*x, LAYOUT), leaves)


@pytest.mark.kernels
@pytest.mark.parametrize("delta", [True, False])
def test_tables_of_another_row_give_its_results_bit_by_bit(delta: bool, short_chunks: None) -> None:
    """As a CUDA graph replays them: with room for more chunks, stems and branches than either row has."""
    from wishbone.ops.chunked_scan.triton import Rule, chunked_scan

    g = torch.Generator().manual_seed(0)
    leaves = [normal(g, 1, 16) * 0.3, normal(g, 1, 16) * 0.3, normal(g, 2, 16), -normal(g, 2).exp(), normal(g, 2).abs()]
    other = PrefixLayout((Document(0, 2, (20, 37)), Document(37, 38)))
    recorded = other.with_room(5)

    def of(layout: PrefixLayout) -> list[Tensor]:
        skip = None if delta else torch.tensor([0.5, 2.0], device=DEVICE)
        rule = Rule(0.25, delta=delta, unit=delta)
        op: Op = lambda x: chunked_scan(*(one[0] for one in x), layout, rule, skip)[None]  # noqa: E731
        return results(op, leaves, torch.float32, DEVICE)

    with _Launches() as ours:
        first = of(recorded)
    with _Launches() as theirs:
        expected = of(LAYOUT.with_room(5))
    assert ours.log == theirs.log and len(ours.log) > 10, "a recording holds the launches of any row"
    assert all(map(torch.equal, first, of(other))) and all(map(torch.equal, expected, of(LAYOUT)))
    assert tables_hold(recorded, LAYOUT)
    overwrite_tables(recorded, LAYOUT)
    found = of(recorded)
    assert all(map(torch.equal, found, expected)) and not torch.equal(found[0], first[0])


class _Launches(TorchDispatchMode):
    """Notes each operation of PyTorch and each launch of a kernel, with all that a CUDA graph would fix."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Any:
        from wishbone.ops.chunked_scan import triton

        run = triton.launch

        def noted(kernel: Any, grid: tuple[int, ...], device: torch.device, *arguments: Any, **sizes: Any) -> None:
            self.log.append(f"{kernel.__name__} {grid} {_fixed(arguments)} {sizes}")
            run(kernel, grid, device, *arguments, **sizes)

        self._patch.setattr(triton, "launch", noted)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._patch.undo()
        super().__exit__(*error)

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not str(function).startswith(("aten.set_", "aten.as_strided", "aten.view", "aten.detach", "aten.randn")):
            self.log.append(f"{function} {_fixed(args)} {_fixed(list((kwargs or {}).values()))}")
        return function(*args, **(kwargs or {}))


def _fixed(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_fixed(one) for one in value]
    return tuple(value.shape) if isinstance(value, Tensor) else str(value)


@pytest.mark.kernels
def test_keys_that_are_too_long_are_refused() -> None:
    from wishbone.ops.chunked_scan.triton import Rule, chunked_scan

    key = torch.zeros(LAYOUT.length, 1, 129)
    with pytest.raises(ValueError, match="at most 128 elements a head"):
        chunked_scan(key, key, key, key[..., 0], key[..., 0], LAYOUT, Rule(1.0))


@pytest.mark.long
@pytest.mark.skipif(find_spec("triton") is None or "TRITON_INTERPRET" in os.environ, reason="needs Triton's compiler")
@pytest.mark.parametrize(("capability", "shared_bytes"), [(80, 166_912), (89, 101_376), (90, 232_448)])
def test_compiled_kernels_fit_into_the_shared_memory_of_gpus_that_are_not_here(
    capability: int, shared_bytes: int
) -> None:
    script = Path(__file__).with_name("scan_shared_memory.py")
    said = subprocess.run([sys.executable, str(script), str(capability)], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    taken = json.loads(said.stdout.splitlines()[-1])
    assert len(taken) == 7 and all(size <= shared_bytes for size in taken.values()), taken
