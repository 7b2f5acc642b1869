"""What must run fused in each model family, derived by hand from its architecture, and that results are its own.

A row of the table counts the layers of a tiny model that have each part: (fused, all). Models have two layers unless
the row says otherwise, and one norm more than their layers have.
"""

from __future__ import annotations

import pytest
import torch
import transformers
from peft import PeftModel
from tiny import tiny_model
from torch import Tensor, nn
from transformers import CONFIG_MAPPING

from wishbone.fused.coverage import LAYER_NORM, Coverage
from wishbone.fused.experts import UNKNOWN
from wishbone.fused.layers import FusedLayers
from wishbone.model.adapter import add_adapter
from wishbone.policy.capability import choose_form
from wishbone.policy.fused_parts import coverage_of
from wishbone.policy.policy import Policy

IDS = torch.tensor([[5, 9, 60, 33, 17, 99, 4, 71, 12, 12, 8]])
Count = tuple[int, int]


def parts(
    *,
    norms: int,
    attention: Count = (2, 2),
    rotary: Count = (2, 2),
    mlp: Count | None = (2, 2),
    groups: int = 4,
    experts: int = 0,
    plain_norms: int = 0,
) -> dict[str, Count]:
    """A family's row.

    Args:
        norms: norms that run fused.
        attention: layers whose attention is ours.
        rotary: layers with a rotary embedding.
        mlp: dense or shared MLPs.
        groups: linear layers with an adapter outside of fused MLPs; q, k and v are one.
        experts: layers with experts.
        plain_norms: layer norms that are left to PyTorch.
    """
    row = {"attention": attention, "rotary embedding": rotary, "norm": (norms, norms + plain_norms), "MLP": mlp}
    row |= {"linear group": (groups, groups), "experts": (experts, experts) if experts else None, "output head": (1, 1)}
    return {name: count for name, count in row.items() if count is not None}


LLAMA = parts(norms=5)  # before attention and before the MLP; q, k, v together, and o
WITH_QUERY_KEY_NORMS = parts(norms=9)
SANDWICHED = parts(norms=9)  # a norm before and after attention and MLP
NO_GATE = {"mlp": (0, 2), "groups": 8}
FAMILIES: dict[str, dict[str, Count]] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "ministral": LLAMA,
    "ministral3": LLAMA,
    "qwen2": LLAMA,
    "granite": LLAMA,
    "phi3": LLAMA,
    "gemma": LLAMA,
    "vaultgemma": LLAMA,
    "glm": LLAMA,
    "ernie4_5": LLAMA,
    "seed_oss": LLAMA,
    "helium": LLAMA,
    "cwm": LLAMA,
    "qwen3": WITH_QUERY_KEY_NORMS,
    "hunyuan_v1_dense": WITH_QUERY_KEY_NORMS,
    "olmo2": WITH_QUERY_KEY_NORMS,
    "olmo3": WITH_QUERY_KEY_NORMS,
    "gemma2": SANDWICHED,
    "glm4": SANDWICHED,
    "hyperclovax": SANDWICHED,
    "gemma3_text": parts(norms=13),  # both
    # both, a norm of values, one of the input of each layer, one of all of these; three projections of that input
    "gemma4_text": parts(norms=18, groups=9),
    "smollm3": parts(norms=9, attention=(4, 4), rotary=(3, 3), mlp=(4, 4), groups=8),  # each fourth does not turn
    "exaone4": parts(norms=9, rotary=(1, 1)),  # full attention does not turn
    "cohere": parts(norms=3),  # attention and MLP side by side
    "cohere2": parts(norms=3, rotary=(1, 1)),
    "olmo": parts(norms=5),
    "arcee": parts(norms=5, **NO_GATE),
    "apertus": parts(norms=9, **NO_GATE),
    "starcoder2": parts(norms=0, plain_norms=5, **NO_GATE),
    "gpt_neox": parts(norms=0, plain_norms=5, **NO_GATE),
    "persimmon": parts(norms=0, plain_norms=9, **NO_GATE),
    "phi": parts(norms=0, plain_norms=3, **NO_GATE),
    "bitnet": parts(norms=9, mlp=(0, 2), groups=8),  # a norm within the MLP; gate and up are one group
    "nemotron": parts(norms=0, plain_norms=5, **NO_GATE),
    "stablelm": parts(norms=0, plain_norms=5),
    # q and kv go down together, each comes up through a norm of its own
    "deepseek_v3": parts(norms=9, groups=8, experts=1),
    "youtu": parts(norms=9, groups=8),
    "minicpm3": parts(norms=9, groups=8),
    "mixtral": parts(norms=5, mlp=None, experts=2),
    "granitemoe": parts(norms=5, mlp=None, experts=2),
    "qwen3_moe": parts(norms=9, mlp=None, experts=2),
    "olmoe": parts(norms=9, mlp=None, experts=2),
    "minimax_m2": parts(norms=9, mlp=None, experts=2),
    "gpt_oss": parts(norms=5, mlp=None, experts=2),
    "qwen2_moe": parts(norms=5, groups=6, experts=2),  # a shared expert with a gate
    "ernie4_5_moe": parts(norms=5, experts=1),
    "glm4_moe": parts(norms=5, experts=1),
}


def trained(family: str, dtype: torch.dtype) -> PeftModel:
    if family not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    base = tiny_model(family, dtype=dtype)
    model = add_adapter(base, rank=4, alpha=8, seed=0).to(dtype)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.1
            parameter.data = values.to(dtype)
    return model.eval()


def loss_and_gradients(model: nn.Module) -> list[Tensor]:
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def largest_error(values: list[Tensor], exact: list[Tensor]) -> float:
    assert len(values) == len(exact) > 1
    norms = [(float((v.double() - e).norm()), float(e.norm())) for v, e in zip(values, exact, strict=True)]
    largest = max(norm for _, norm in norms)
    return max(error / max(norm, 1e-6 * largest) for error, norm in norms)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_what_runs_fused(family: str) -> None:
    model = trained(family, torch.float32)
    capability = choose_form(model)
    fused = FusedLayers(model, norms_everywhere=True)
    policy = Policy(model, form=capability.form, fused=fused, layout_as_mask=capability.layout_as_mask)
    coverage = coverage_of(policy, capability.reason)
    assert {one.part: (one.fused, one.layers) for one in coverage.parts} == FAMILIES[family]
    reasons = {reason for one in coverage.parts for reason, _ in one.why_not}
    assert_every_loss_is_named(coverage, capability.reason)
    assert all(reason and "None" not in reason for reason in reasons)


def assert_every_loss_is_named(coverage: Coverage, form_reason: str | None) -> None:
    """One line for each part, unless nothing is lost or the reason was said already."""
    silent = {LAYER_NORM, form_reason}
    lossy = [one for one in coverage.parts if {reason for reason, _ in one.why_not} - silent]
    lines = coverage.warnings(said=form_reason)
    assert len(lines) == len(lossy)
    for one, line in zip(lossy, lines, strict=True):
        assert line.startswith(f"{one.layers - one.fused} of {one.layers} ") and "\n" not in line


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_the_familys_own(family: str) -> None:
    """In float32, fused forms lose no more against float64 than the family's own forward does."""
    model = trained(family, torch.float64)
    exact = loss_and_gradients(model)
    with FusedLayers(model, norms_everywhere=True).running():
        fused = loss_and_gradients(model)
    assert not any("forward" in vars(module) for module in model.modules())
    assert largest_error(fused, exact) <= 3e-5  # families round to float32 inside, Gemma 4 at 18 norms
    single = trained(family, torch.float32)
    usual = largest_error(loss_and_gradients(single), exact)
    with FusedLayers(single, norms_everywhere=True).running():
        lost = largest_error(loss_and_gradients(single), exact)
    assert lost <= 3 * usual < 1e-2


def test_reasons_are_those_of_the_architecture() -> None:
    def reasons(family: str) -> dict[str, tuple[tuple[str, int], ...]]:
        model = trained(family, torch.float32)
        policy = Policy(model, fused=FusedLayers(model, norms_everywhere=True))
        return {one.part: one.why_not for one in coverage_of(policy).parts}

    assert reasons("apertus")["MLP"] == (("ApertusMLP has no gate", 2),)
    assert reasons("gpt_neox")["norm"] == ((LAYER_NORM, 5),)
    assert reasons("llama4_text")["experts"] == ((UNKNOWN, 4),)
    assert reasons("bitnet")["MLP"] == (("BitNetMLP has more than an activation between its layers", 2),)
