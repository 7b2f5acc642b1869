"""On a CUDA device: attention, log-probabilities and the whole step against float64 and plain sequences."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model, tiny_pairs
from torch import Tensor

from wishbone.data.batch import truncated_pair
from wishbone.engine.execution import Execution
from wishbone.engine.step import PreferenceStep
from wishbone.model.adapter import add_adapter
from wishbone.ops.prefix_attention import Document, PrefixLayout, prefix_attention
from wishbone.ops.token_logps import token_logps
from wishbone.policy.capability import Capability, choose_form
from wishbone.policy.policy import Policy
from wishbone.preference.metrics import PairMetrics
from wishbone.preference.objective import Objective
from wishbone.reference.reference import AdapterDisabled

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LAYOUT = PrefixLayout((Document(0, 300, (520, 650)), Document(650, 660, (1100, 1500)), Document(1500, 1536)))


def attention_inputs(layout: PrefixLayout, heads: tuple[int, int], head_dim: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, count, layout.length, head_dim, generator=generator, dtype=torch.float64)
        for count in (heads[0], heads[1], heads[1])
    ]


@pytest.mark.parametrize(("heads", "head_dim"), [((8, 8), 64), ((8, 2), 128), ((9, 3), 64)])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (200, None), (None, 5.0)])
@pytest.mark.parametrize("fast", ["sdpa", "triton"])
def test_attention_loses_no_more_than_ordinary_attention(
    fast: str, heads: tuple[int, int], head_dim: int, window: int | None, softcap: float | None
) -> None:
    exact_inputs = [tensor.requires_grad_() for tensor in attention_inputs(LAYOUT, heads, head_dim)]
    options = {"scale": head_dim**-0.5, "window": window, "softcap": softcap}
    exact = prefix_attention(*exact_inputs, LAYOUT, backend="reference", **options)
    direction = torch.randn(exact.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    exact_gradients = torch.autograd.grad((exact * direction).sum(), exact_inputs)

    def error(backend: str) -> list[float]:
        low = [tensor.detach().to("cuda", torch.bfloat16).requires_grad_() for tensor in exact_inputs]
        out = prefix_attention(*low, LAYOUT, backend=backend, **options)
        gradients = torch.autograd.grad((out.float() * direction.cuda().float()).sum(), low)
        pairs = zip((out, *gradients), (exact, *exact_gradients), strict=True)
        return [float((a.double().cpu() - b).norm() / b.norm()) for a, b in pairs]

    for ours, ordinary in zip(error(fast), error("reference"), strict=True):
        assert ours <= 1.5 * ordinary


def test_new_rows_compile_nothing_new() -> None:
    from wishbone.ops.prefix_attention.gradient_kernels import key_gradient, query_gradient
    from wishbone.ops.prefix_attention.kernels import attend

    compiled = []
    for length in (256, 1536, 640, 2048, 384, 1024):
        layout = PrefixLayout((Document(0, length // 3, (length // 2, length - 7)), Document(length - 7, length)))
        inputs = [t.to("cuda", torch.bfloat16).requires_grad_() for t in attention_inputs(layout, (8, 2), 64)]
        prefix_attention(*inputs, layout, scale=0.125).sum().backward()
        kernels = [kernel.device_caches[0][0] for kernel in (attend, query_gradient, key_gradient)]
        compiled.append([len(cache) for cache in kernels])
    assert all(count > 0 for count in compiled[0])
    assert compiled[1:] == compiled[:1] * 5


@pytest.mark.parametrize("heads", [(8, 8), (8, 2)])
def test_heads_above_256_do_not_keep_all_scores(heads: tuple[int, int]) -> None:
    """The scores that are computed here would take 2.5 GiB in bfloat16; all tensors of heads and masks take 0.7 GiB."""
    layout = PrefixLayout((Document(0, 4096, (10_240, 16_384)),))
    inputs = [t.to("cuda", torch.bfloat16).requires_grad_() for t in attention_inputs(layout, heads, 320)]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = prefix_attention(*inputs, layout, scale=320**-0.5)
    assert torch.cuda.max_memory_allocated() - before < 1.25 * 2**30
    out.sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 2.4 * 2**30


@pytest.mark.parametrize("fast", ["chunked", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_token_logps(dtype: torch.dtype, fast: str) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 64, generator=generator, dtype=torch.float64) for n in (777, 5003))
    targets = torch.randint(5003, (777,), generator=generator)
    exact = token_logps(hidden.requires_grad_(), weight, targets, backend="reference").logps
    (exact_gradient,) = torch.autograd.grad(exact.sum(), hidden)

    def error(backend: str) -> tuple[float, float]:
        low = hidden.detach().to("cuda", dtype).requires_grad_()
        logps = token_logps(low, weight.to("cuda", dtype), targets.cuda(), backend=backend).logps
        (gradient,) = torch.autograd.grad(logps.sum(), low)
        return (
            float((logps.double().cpu() - exact).norm() / exact.norm()),
            float((gradient.double().cpu() - exact_gradient).norm() / exact_gradient.norm()),
        )

    for ours, ordinary in zip(error(fast), error("reference"), strict=True):
        assert ours <= 1.5 * ordinary


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma2", "gemma3_text", "gpt_neox"])
def test_step_on_cuda_equals_the_cpu(family: str) -> None:
    pairs = [truncated_pair(p, c, r) for p, c, r in tiny_pairs(6, vocab=128, seed=2)]
    results = []
    for device in ("cpu", "cuda"):
        model = add_adapter(tiny_model(family), rank=4, alpha=8, dropout=0.0, target_modules="all-linear", seed=0)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
        model.get_base_model().set_attn_implementation("eager")  # sdpa drops Gemma's soft-capping in some versions
        model.to(device)
        multiple = 128 if device == "cuda" else 1
        assert choose_form(model, row_multiple=multiple) == Capability("shared_prefix")
        policy = Policy(model, row_multiple=multiple)
        loss = PreferenceStep(policy, AdapterDisabled(policy), Objective()).backward(
            [pairs], PairMetrics(0.1), Execution(200)
        )
        gradient = torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])
        results.append((float(loss), gradient))
    (cpu_loss, cpu_gradient), (cuda_loss, cuda_gradient) = results
    assert cuda_loss == pytest.approx(cpu_loss, rel=1e-4)
    assert (cuda_gradient - cpu_gradient).norm() <= 2e-3 * cpu_gradient.norm()
